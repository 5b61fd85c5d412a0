"""Checkpoints of gates that distinguish tasks: what was stored before a task was added still loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from multi_task_parts import HEADS, NECK, dense_sample, make_model
from tiny import tiny_llava

from flmm_detseg.errors import CheckpointError
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_file

ROWS = "heads.segmentation.neck.gate.task_embedding"


def build(tasks: tuple[str, ...] = (), **changes) -> GroundingLMM:
    neck = {**NECK, "gate": "dynamic", "gate_initial_share": 0.3, "gate_tasks": tasks}
    heads = {"segmentation": {**HEADS["segmentation"], "neck": neck}}
    return make_model(lmm=tiny_llava(), heads=heads, **changes).eval()


def save(model: GroundingLMM, path: Path, drop: str = "?") -> str:
    kept = {name: value for name, value in model.trainable_state_dict().items() if drop not in name}
    torch.save({"state_dict": kept}, path)
    return str(path)


def moved() -> GroundingLMM:
    model = build()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return model


def test_an_older_checkpoint_loads_into_a_model_with_a_new_task(tmp_path: Path) -> None:
    old, sample = moved(), dense_sample(0, "segmentation")
    assert [name for name in old.trainable_state_dict() if ROWS in name] == [f"{ROWS}.weight"]
    file = save(old, tmp_path / "old.pth")
    new = build(("reasoning",))
    begin = new.trainable_state_dict()[f"{ROWS}.added.reasoning"].clone()
    load_file(new, file)
    assert torch.equal(new.segment([sample])[0], old.segment([sample])[0])
    assert torch.equal(new.trainable_state_dict()[f"{ROWS}.added.reasoning"], begin)
    for name, value in old.trainable_state_dict().items():
        assert torch.equal(new.trainable_state_dict()[name], value), name
    # A stage that begins with it.
    stage = build(("reasoning",), init_from=[file])
    assert torch.equal(stage.segment([sample])[0], old.segment([sample])[0])


def test_what_was_stored_of_a_new_task_comes_back(tmp_path: Path) -> None:
    new = build(("reasoning",))
    with torch.no_grad():
        new.heads["segmentation"].neck.gate.task_embedding.added["reasoning"].fill_(7.0)
    file = save(new, tmp_path / "new.pth")
    for again in (build(("reasoning", "counting")), build(("counting", "reasoning"), init_from=[file])):
        load_file(again, file)
        assert (again.trainable_state_dict()[f"{ROWS}.added.reasoning"] == 7).all()
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*added\.reasoning"):
        load_file(build(), file)


def test_a_file_without_the_old_rows_is_no_older_file(tmp_path: Path) -> None:
    file = save(build(("reasoning",)), tmp_path / "broken.pth", drop="task_embedding")
    with pytest.raises(CheckpointError, match=r"2 missing: .*task_embedding\.weight, .*added\.reasoning"):
        load_file(build(("reasoning",)), file)
