"""A checkpoint goes with its LMM on every road: files, DeepSpeed folders, starts from other runs, resuming, tools."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from multi_task_parts import LORA
from tiny import tiny_llava
from train_parts import MODEL, ROOT

from flmm_detseg.engine import GroundingCheckpointHook
from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms.weights import identity
from flmm_detseg.models import GroundingLMM, model_from_config
from flmm_detseg.models.checkpoint import IDENTITY, lmm_meta, load_file

HEADS = MODEL["heads"]
OTHER = "was trained on another LMM"


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(identity, "print_log", lambda text, *_: found.append(text))
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Heads of a run on the LMM of seed 0: as a file, as a DeepSpeed folder, and as files were before."""
    folder = tmp_path_factory.mktemp("stored")
    model = GroundingLMM(tiny_llava(), HEADS)
    tensors, meta = dict(model.trainable_state_dict()), {"iter": 1, **lmm_meta(model.lmm)}
    torch.save({"meta": meta, "state_dict": tensors}, folder / "a.pth")
    torch.save({"meta": {"iter": 1}, "state_dict": tensors}, folder / "old.pth")
    (folder / "zero.pth").mkdir()
    torch.save({"meta": meta, "module": tensors}, folder / "zero.pth" / "mp_rank_00_model_states.pt")
    return folder


@pytest.mark.parametrize("name", ["a.pth", "zero.pth"])
def test_heads_of_another_lmm_are_refused_and_nothing_is_changed(stored, name, warnings):
    control = GroundingLMM(tiny_llava(seed=1), HEADS)
    before = {key: value.clone() for key, value in control.trainable_state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{name} {OTHER}"):
        load_file(control, stored / name)
    assert all(torch.equal(value, before[key]) for key, value in control.trainable_state_dict().items())
    load_file(GroundingLMM(tiny_llava(), HEADS), stored / name)
    assert not warnings
    load_file(GroundingLMM(tiny_llava(seed=1), HEADS, allow_other_lmm=True), stored / name)
    assert len(warnings) == 1


def test_a_file_that_records_none_loads_with_one_line(stored, warnings):
    load_file(GroundingLMM(tiny_llava(seed=1), HEADS), stored / "old.pth")
    assert len(warnings) == 1
    assert "does not say on which LMM" in warnings[0]


def test_a_later_stage_starts_from_heads_of_its_own_lmm_only(stored, warnings):
    start = dict(init_from=[str(stored / "a.pth")], new_parts=["lmm."])
    GroundingLMM(tiny_llava(lora=LORA, frozen=False), HEADS, **start)
    with pytest.raises(CheckpointError, match=OTHER):
        GroundingLMM(tiny_llava(lora=LORA, frozen=False, seed=1), HEADS, **start)
    assert not warnings
    GroundingLMM(tiny_llava(lora=LORA, frozen=False, seed=1), HEADS, **start, allow_other_lmm=True)
    assert len(warnings) == 1


def test_resuming_compares_it_too(stored):
    content = torch.load(stored / "a.pth", weights_only=True)
    hook = GroundingCheckpointHook()
    hook.after_load_checkpoint(SimpleNamespace(model=GroundingLMM(tiny_llava(), HEADS)), dict(content))
    with pytest.raises(CheckpointError, match=OTHER):
        hook.after_load_checkpoint(
            SimpleNamespace(model=GroundingLMM(tiny_llava(seed=1), HEADS)), dict(content)
        )


def test_python_says_it_with_an_argument(stored, warnings):
    from mmengine.config import Config

    other = Config({"model": {**MODEL, "lmm": dict(type="tiny.tiny_llava", seed=1)}})
    with pytest.raises(CheckpointError, match="allow_other_lmm=True"):
        model_from_config(other, stored / "a.pth", device="cpu")
    assert model_from_config(other, stored / "a.pth", device="cpu", allow_other_lmm=True).allow_other_lmm
    assert len(warnings) == 1


def test_every_command_that_loads_a_checkpoint_can_allow_another_lmm():
    loads = re.compile(r'"--checkpoint"|add_common_arguments|"--resume"|stages\.run_plan')
    folder = ROOT / "flmm_detseg" / "commands"
    commands = [path for path in folder.rglob("*.py") if loads.search(path.read_text())]
    assert len(commands) >= 10
    for path in commands:
        text = path.read_text()
        assert "add_lmm_argument(parser)" in text or "add_common_arguments(parser)" in text, path
    assert "add_lmm_argument(parser)" in (folder / "evaluate" / "arguments.py").read_text()


def test_the_record_is_small(stored):
    assert len(torch.load(stored / "a.pth", weights_only=True)["meta"][IDENTITY]) < 5000
