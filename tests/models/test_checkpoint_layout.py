"""A checkpoint loads only where patches become a sequence as they did in its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cached_parts import cached_llava
from head_rankings import ranking_file
from mmengine.config import Config
from multi_task_parts import HEADS as MULTI_TASK
from multi_task_parts import LORA
from tiny import tiny_llava
from train_parts import ROOT

from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms.weights import trained_layout
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import LAYOUT, lmm_meta, load_file, read_checkpoint
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.models.shapes import import_flmm_checkpoint
from flmm_detseg.registry import MODELS

CONFIGS = ROOT / "configs" / "cache"
HEADS = dict(language=dict(type="flmm_detseg.heads.LanguageHead"))
TRAIN = ("separators", "projectors")
FUSED, COMPRESSED = PreFusion(num_layers=2), PreFusion(num_layers=2, compressed_side=2)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(trained_layout, "print_log", lambda text, *_: found.append(text))
    return found


def cached(train: tuple[str, ...] = TRAIN, **arguments) -> GroundingLMM:
    return GroundingLMM(cached_llava(train=train, **arguments), HEADS)


def save(model: GroundingLMM, path: Path, *, old: bool = False) -> Path:
    """As the trainer writes it; ``old``: before layouts were recorded."""
    tensors = {name: tensor + 1 for name, tensor in model.trainable_state_dict().items()}
    torch.save({"meta": {} if old else lmm_meta(model.lmm), "state_dict": tensors}, path)
    return path


def same(model: GroundingLMM, tensors: dict[str, torch.Tensor]) -> bool:
    now = model.trainable_state_dict()
    return now.keys() == tensors.keys() and all(torch.equal(now[name], tensors[name]) for name in now)


def copied(model: GroundingLMM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}


def ranking(folder: Path, *heads: tuple[int, int]) -> str:
    """File of a ranking for the tiny LLaVA."""
    name = "_".join(f"{layer}{head}" for layer, head in heads)
    return ranking_file(folder / f"{name}.json", 3, 4, list(heads))


@pytest.mark.parametrize("lmm", [tiny_llava, cached_llava])
def test_a_head_that_read_other_attention_heads_is_refused(lmm, tmp_path, warnings):
    """Both stacks have two channels: no shape tells them apart."""

    def model(**rows) -> GroundingLMM:
        return GroundingLMM(lmm(rows=rows), {"phrase": MULTI_TASK["phrase"]})

    one, other = ranking(tmp_path, (2, 1), (0, 3), (1, 0)), ranking(tmp_path, (1, 2), (0, 3))
    path = save(model(heads="top:2", ranking=one), tmp_path / "a.pth")
    # Order and what comes after the best ones do not count, nor does the file's name.
    same_heads = model(heads="top:2", ranking=ranking(tmp_path, (0, 3), (2, 1)))
    load_file(same_heads, path)
    assert same(same_heads, read_checkpoint(path).tensors)
    assert not warnings
    for wrong, shown in (
        (model(heads="top:2", ranking=other), r"\[\[0, 3\], \[1, 2\]\]"),
        (model(layers=[0], heads=[0, 3]), "None"),
    ):
        before = copied(wrong)
        with pytest.raises(
            CheckpointError, match=rf"attention_pairs \[\[0, 3\], \[2, 1\]\] \(model: {shown}\)"
        ):
            load_file(wrong, path)
        assert same(wrong, before)


def test_the_same_layout_loads(tmp_path, warnings):
    path = save(cached(prefusion=COMPRESSED), tmp_path / "a.pth")
    model = cached(prefusion=COMPRESSED)
    load_file(model, path)
    assert same(model, read_checkpoint(path).tensors)
    assert not warnings


@pytest.mark.parametrize(
    ("theirs", "ours", "facts"),
    [
        ({}, dict(positions="packed"), ["positions 'raster' (model: 'packed')"]),
        (
            dict(letterbox="drop", positions="packed"),
            {},
            ["positions 'packed' (model: 'raster')", "letterbox 'drop' (model: 'background')"],
        ),
        (
            dict(prefusion=COMPRESSED),
            dict(prefusion=PreFusion(num_layers=2, compressed_side=2, num_heads=4)),
            ["prefusion.num_heads 8 (model: 4)"],
        ),
        (dict(projectors="separate"), {}, ["projectors 'separate' (model: 'shared')"]),
    ],
)
def test_another_layout_is_refused_with_both_values_and_changes_nothing(theirs, ours, facts, tmp_path):
    path = save(cached(**theirs), tmp_path / "a.pth")
    model = cached(**ours)
    before = copied(model)
    with pytest.raises(CheckpointError, match=r"a\.pth was trained for another layout") as error:
        load_file(model, path)
    assert all(fact in str(error.value) for fact in facts)
    assert str(error.value).count("(model: ") == len(facts)
    assert "Use the config the checkpoint was trained with" in str(error.value)
    assert same(model, before)


def test_image_order_is_another_layout_although_all_tensors_fit(tmp_path):
    lora = dict(lora=LORA, frozen=False, train=())
    path = save(cached(**lora), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"order 'background' \(model: 'image'\)"):
        load_file(cached(order="image", **lora), path)
    with pytest.raises(CheckpointError, match=r"order 'background' \(model: None\)"):
        load_file(GroundingLMM(tiny_llava(lora=LORA, frozen=False), HEADS), path)


def test_an_old_checkpoint_loads_with_a_warning(tmp_path, warnings):
    path = save(cached(), tmp_path / "old.pth", old=True)
    model = cached(positions="packed")
    load_file(model, path)
    assert same(model, read_checkpoint(path).tensors)
    assert len(warnings) == 1
    assert "old.pth does not say for which layout" in warnings[0]


def test_a_plain_llava_records_no_layout_and_needs_none(tmp_path, warnings):
    model = GroundingLMM(tiny_llava(lora=LORA, frozen=False), HEADS)
    assert LAYOUT not in lmm_meta(model.lmm)
    load_file(model, save(model, tmp_path / "a.pth"))
    assert not warnings


@pytest.mark.parametrize("prefusion", [FUSED, COMPRESSED])
def test_a_run_may_add_prefusion_to_what_it_starts_from(prefusion, tmp_path, warnings):
    path = save(cached(), tmp_path / "rung3.pth")
    settings = dict(init_from=[str(path)], new_parts=["lmm.prefusion."])
    lmm = cached_llava(prefusion=prefusion, train=(*TRAIN, "prefusion"))
    model = GroundingLMM(lmm, HEADS, **settings)
    given = read_checkpoint(path).tensors
    now = model.trainable_state_dict()
    assert all(torch.equal(now[name], given[name]) for name in given)
    assert not warnings
    # What both have must be the same.
    with pytest.raises(
        CheckpointError, match=r"rung3\.pth .*: positions 'raster' \(model: 'packed'\)\. Start"
    ):
        GroundingLMM(
            cached_llava(prefusion=prefusion, positions="packed", train=(*TRAIN, "prefusion")),
            HEADS,
            **settings,
        )


def test_a_start_from_prefusion_keeps_it(tmp_path):
    train = (*TRAIN, "prefusion")
    path = str(save(cached(train, prefusion=COMPRESSED), tmp_path / "rung4.pth"))
    heads4 = PreFusion(num_layers=2, compressed_side=2, num_heads=4)
    GroundingLMM(cached_llava(prefusion=COMPRESSED, train=train), HEADS, init_from=[path])
    with pytest.raises(CheckpointError, match=r"prefusion\.num_heads 8 \(model: 4\)"):
        GroundingLMM(
            cached_llava(prefusion=heads4, train=train), HEADS, init_from=[path], new_parts=["lmm.prefusion."]
        )


def test_a_deepspeed_folder_records_it_too(tmp_path):
    model = cached()
    folder = tmp_path / "iter_1.pth"
    folder.mkdir()
    content = {"module": dict(model.trainable_state_dict()), "meta": {"iter": 1, **lmm_meta(model.lmm)}}
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    load_file(cached(), folder)
    with pytest.raises(CheckpointError, match="positions"):
        load_file(cached(positions="packed"), folder)


# The repository's configs.


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Path:
    """What tiny_cached_lora_packed might have trained."""
    monkeypatch.chdir(ROOT)  # weights of the tiny models are named relative to it
    model = MODELS.build(read_config(CONFIGS / "tiny_cached_lora_packed.py").model)
    return save(model, tmp_path / "packed.pth")


def test_packed_positions_are_not_served_as_raster(packed):
    with pytest.raises(CheckpointError, match=r"positions 'packed' \(model: 'raster'\)\. Use the config"):
        model_from_config(CONFIGS / "tiny_stream_screens_lora.py", packed, device="cpu")
    config: Config = read_config(CONFIGS / "tiny_stream_screens_lora.py")
    config.model.lmm.positions = "packed"
    assert same(model_from_config(config, packed, device="cpu"), read_checkpoint(packed).tensors)


def test_the_import_tool_keeps_what_is_recorded(packed, tmp_path):
    import_flmm_checkpoint(packed, CONFIGS / "tiny_cached_lora_packed.py", tmp_path / "out.pth")
    stored = torch.load(tmp_path / "out.pth", weights_only=True)
    assert stored["meta"][LAYOUT] == read_checkpoint(packed).layout is not None
    with pytest.raises(CheckpointError, match="positions"):
        import_flmm_checkpoint(packed, CONFIGS / "tiny_cached_lora.py", tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()
