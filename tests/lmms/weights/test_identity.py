"""Which LMM it is: the same wherever and however its weights lie, another one as soon as weights differ."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from cached_parts import cached_llava
from tiny import tiny_llava
from transformers import CLIPImageProcessor

from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.weights import identity
from flmm_detseg.lmms.weights.identity import check_identity, lmm_identity

LORA = {"llm": dict(r=2), "projector": dict(r=2, target="all-linear")}


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(identity, "print_log", lambda text, *_: found.append(text))
    return found


@pytest.fixture(scope="module")
def lmm():
    return tiny_llava()


@pytest.fixture(scope="module")
def recorded(lmm):
    return lmm_identity(lmm)


@pytest.fixture(scope="module")
def folder(lmm, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "first"
    lmm.model.save_pretrained(path)
    lmm.processor.tokenizer.save_pretrained(path)
    CLIPImageProcessor().save_pretrained(path)
    return path


def test_it_is_plain_text_of_a_few_bytes_a_weight(lmm, recorded):
    assert len(recorded) < 60 * len(list(lmm.parameters()))
    assert json.loads(recorded)["dtypes"] == ["float32"]


def test_a_folder_may_be_moved_cut_into_files_and_read_in_other_precision(
    lmm, recorded, folder, tmp_path, warnings
):
    moved = shutil.copytree(folder, tmp_path / "somewhere else")
    for dtype in ("float32", "bfloat16", "float16"):
        read = LlavaAdapter.from_pretrained(str(moved), dtype=dtype)
        check_identity(read, recorded, "a.pth")
        check_identity(lmm, lmm_identity(read), "b.pth")
        if dtype != "float16":
            assert json.loads(lmm_identity(read))["samples"] == json.loads(recorded)["samples"]
    lmm.model.save_pretrained(moved, max_shard_size="20KB")
    assert len(list(moved.glob("*.safetensors"))) > 2
    (moved / "model.safetensors").unlink(missing_ok=True)
    check_identity(LlavaAdapter.from_pretrained(str(moved)), recorded, "a.pth")
    assert not warnings


def test_added_and_trained_parts_leave_it_alone(lmm, recorded, warnings):
    adapted = tiny_llava(lora=LORA, frozen=False)
    check_identity(adapted, recorded, "stage1.pth")
    assert lmm_identity(adapted) == recorded
    trained = tiny_llava(lora=LORA, frozen=False)
    trained.freeze_trained()
    assert lmm_identity(trained) == recorded
    partly = tiny_llava(frozen=False)
    partly.requires_grad_(False)
    projector = partly.model.model.multi_modal_projector.requires_grad_(True)
    text = lmm_identity(partly)
    assert len(json.loads(text)["samples"]) == len(json.loads(recorded)["samples"]) - len(
        list(projector.parameters())
    ), "what a checkpoint holds itself needs no identity"
    check_identity(lmm, text, "a.pth")
    with torch.no_grad():
        projector.linear_1.weight.add_(1)
    check_identity(lmm, lmm_identity(partly), "a.pth")
    assert lmm_identity(tiny_llava(frozen=False)) is None, "all of it is in the checkpoint"
    assert not warnings


def test_the_background_cache_wraps_the_same_lmm(warnings):
    cached = cached_llava()
    check_identity(cached, lmm_identity(cached.lmm), "unmodified.pth")
    check_identity(cached.lmm, lmm_identity(cached), "cached.pth")
    check_identity(cached.lmm, lmm_identity(cached_llava(lora=LORA, frozen=False)), "lora.pth")
    assert not warnings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_lmm_is_refused_unless_it_is_meant(recorded, dtype, warnings):
    other = tiny_llava(seed=1, dtype=dtype)
    with pytest.raises(
        CheckpointError, match=r"a\.pth was trained on another LMM: \d+ of \d+ weights differ"
    ) as e:
        check_identity(other, recorded, "a.pth")
    assert "--allow-other-lmm" in str(e.value)
    assert not warnings
    check_identity(other, recorded, "a.pth", allow_other=True)
    assert len(warnings) == 1
    assert "loaded all the same" in warnings[0]


def test_one_weight_that_training_moved_is_enough(recorded):
    tuned = tiny_llava()
    weight = tuned.model.model.language_model.layers[1].self_attn.v_proj.weight
    with torch.no_grad():
        weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(
        CheckpointError, match=r"1 of \d+ weights differ \(first: .*layers\.1\.self_attn\.v_proj"
    ):
        check_identity(tuned, recorded, "a.pth")


def test_what_records_nothing_or_what_nobody_can_compare_loads_with_a_line(lmm, recorded, warnings):
    check_identity(lmm, None, "old.pth")
    assert "old.pth does not say on which LMM it was trained" in warnings.pop()
    content = json.loads(recorded)
    for changed in ({**content, "format": 2}, {**content, "samples": {"00000000": "0" * 32}}):
        check_identity(lmm, json.dumps(changed), "new.pth")
        assert "cannot be compared" in warnings.pop()
    for damaged in ("{", "[]", json.dumps({**content, "samples": 3}), "5"):
        with pytest.raises(CheckpointError, match="is damaged"):
            check_identity(lmm, damaged, "a.pth")


def test_shapes_alone_have_none(warnings):
    with torch.device("meta"):
        shapes = tiny_llava()
    assert lmm_identity(shapes) is None
    check_identity(shapes, "anything", "a.pth")
    assert not warnings
