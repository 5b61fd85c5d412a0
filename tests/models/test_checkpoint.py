"""Reading checkpoints: strict, safe, every form they come in."""

from __future__ import annotations

import collections
import math
import os
import pickle

import pytest
import torch
from torch import nn

from flmm_detseg.errors import CheckpointError
from flmm_detseg.models import checkpoint
from flmm_detseg.models.checkpoint import (
    check_tensors,
    load_checkpoint,
    load_parts,
    load_tensors,
    to_our_names,
)

FLMM_NAMES = (
    "text_layer_weights",
    "text_proj.weight",
    "mask_head.conv_seg.bias",
    "sam.model.mask_decoder.iou_token.weight",
)


class Model(nn.Module):
    """Names as in the real model; the LMM is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.lmm = nn.Linear(3, 3).requires_grad_(False)
        phrase = nn.Module()
        phrase.text_proj = nn.Linear(4, 2)
        phrase.text_layer_weights = nn.Parameter(torch.ones(3))
        self.heads = nn.ModuleDict({"phrase": phrase})


def tensors(model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    model = model or Model()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {"module": t, "ds_version": "0.18"}]
)
def test_a_file_of_any_known_form_is_read(wrap, tmp_path):
    expected = tensors()
    torch.save(wrap(expected), tmp_path / "file.pth")
    found = load_checkpoint(tmp_path / "file.pth")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("inside", ["", "iter_95080.pth"])
def test_a_deepspeed_folder_is_read(inside, tmp_path):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    expected = tensors()
    shapes = [collections.OrderedDict((name, value.shape) for name, value in expected.items())]
    states = {
        "module": expected,
        "param_shapes": shapes,
        "names": {"a", "b"},
        "ds_config": {"zero": {"stage": 2}},
    }
    torch.save(states, folder / "mp_rank_00_model_states.pt")
    assert load_checkpoint(tmp_path).keys() == expected.keys()


def test_a_folder_without_or_with_several_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="mp_rank_00_model_states.pt"):
        load_checkpoint(tmp_path)
    for name in ("iter_1.pth", "iter_2.pth"):
        (tmp_path / name).mkdir()
        torch.save({"module": tensors()}, tmp_path / name / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="several.*iter_1.*iter_2"):
        load_checkpoint(tmp_path)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_code_is_refused_not_run(plain_pickle, tmp_path):
    content = {"state_dict": {"x": Bomb(str(tmp_path / "ran"))}}
    path = tmp_path / "bomb.pth"
    if plain_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"bomb\.pth was refused"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth does not exist"):
        load_checkpoint(tmp_path / "nowhere.pth")
    torch.save(tensors(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"half\.pth"):
        load_checkpoint(tmp_path / "half.pth")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="epoch, lr"):
        load_checkpoint(tmp_path / "other.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(tmp_path / "empty.pth")


def test_all_problems_of_a_misfit_are_listed_and_nothing_is_loaded():
    model = Model()
    before = tensors(model)
    given = {name: value + 1 for name, value in before.items()}
    given["heads.phrase.text_proj.weight"] = torch.zeros(2, 5)
    given["heads.phrase.text_projj.bias"] = given.pop("heads.phrase.text_proj.bias")
    with pytest.raises(CheckpointError) as error:
        load_tensors(model, given, "file.pth")
    message = str(error.value)
    assert "file.pth does not fit" in message
    assert "1 missing: heads.phrase.text_proj.bias" in message
    assert "1 unexpected: heads.phrase.text_projj.bias" in message
    assert "heads.phrase.text_proj.weight (2, 5) (model: (2, 4))" in message
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())


@pytest.mark.case("model/nan_prediction")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tensors_that_are_no_numbers_are_named_and_nothing_is_loaded(value, tmp_path, monkeypatch):
    model = Model()
    before, given = tensors(model), tensors()
    given["heads.phrase.text_proj.bias"][1] = value
    refused = pytest.raises(
        CheckpointError,
        match=r"nan\.pth holds NaN or infinities in 1 of 3 tensors: heads\.phrase\.text_proj\.bias\.",
    )
    with refused:
        load_tensors(model, given, "nan.pth")
    published = {name.removeprefix("heads.phrase."): tensor for name, tensor in given.items()}
    with refused:
        load_tensors(model, published, "nan.pth")
    torch.save(published, tmp_path / "nan.pth")
    monkeypatch.setattr(checkpoint, "check_lmm", lambda *arguments, **options: None)
    with refused:
        load_parts(model, [str(tmp_path / "nan.pth")])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())


@pytest.mark.case("model/empty_pointer")
def test_whatever_a_reader_of_damaged_bytes_raises_is_named(tmp_path):
    for content in (b"", b"half", b"PK\x03\x04", b"\x80\x02h\x05.", b"\x80\x02}(."):
        (tmp_path / "damaged.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.pth"):
            load_checkpoint(tmp_path / "damaged.pth")


def test_frozen_tensors_are_neither_needed_nor_welcome():
    model = Model()
    load_tensors(model, tensors(), "file.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: lmm\.weight"):
        load_tensors(model, {**tensors(), "lmm.weight": torch.zeros(3, 3)}, "file.pth")


def test_published_names_become_ours_and_the_known_buffer_is_optional():
    renamed = to_our_names({name: torch.zeros(1) for name in FLMM_NAMES})
    assert list(renamed) == [f"heads.phrase.{name}" for name in FLMM_NAMES]
    model = Model()
    published = {name.removeprefix("heads.phrase."): value for name, value in tensors(model).items()}
    buffer = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    given = check_tensors(model, {**published, buffer: torch.zeros(2, 8)}, "public.pth")
    assert given.keys() == tensors(model).keys()


def test_half_precision_tensors_are_cast_to_the_model(tmp_path):
    model, source = Model(), tensors()
    load_tensors(model, {name: value.bfloat16() for name, value in source.items()}, "bf16.pth")
    for name, parameter in model.named_parameters():
        if name in source:
            assert parameter.dtype == torch.float32
            torch.testing.assert_close(parameter, source[name], rtol=1e-2, atol=1e-2)
