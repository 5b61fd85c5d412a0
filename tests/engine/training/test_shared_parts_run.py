"""A run whose heads share a part: stored once, and a resumed run goes on with the same bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from train_parts import MODEL, write_config

from flmm_detseg.engine.training.trainer import TrainOptions, train
from flmm_detseg.models import model_from_config
from flmm_detseg.models.checkpoint import load_checkpoint


def shared_model() -> dict[str, Any]:
    """The tiny model with a second phrase head, both on one SAM."""
    model = copy.deepcopy(MODEL)
    phrase = model["heads"]["phrase"]
    model["parts"] = dict(sam=phrase["sam"])
    phrase["sam"] = "sam"
    model["heads"]["second"] = dict(phrase, loss_mask_weight=2.0)
    return model


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path: Path, one_thread) -> None:
    config = str(write_config(tmp_path, max_iters=4, interval=2, model=shared_model()))
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(TrainOptions(config=config, work_dir=str(whole)))
    stored = load_checkpoint(whole / "iter_4.pth")
    assert any(name.startswith("parts.sam.") for name in stored)
    assert not any(".sam." in name for name in stored if not name.startswith("parts."))
    begin = load_checkpoint(whole / "iter_2.pth")
    assert any(not torch.equal(begin[name], stored[name]) for name in stored if name.startswith("parts."))
    train(TrainOptions(config=config, work_dir=str(part), resume=str(whole / "iter_2.pth")))
    resumed = load_checkpoint(part / "iter_4.pth")
    assert resumed.keys() == stored.keys()
    for name, value in stored.items():
        assert torch.equal(resumed[name], value), name
    model = model_from_config(config, part / "iter_4.pth", device="cpu")
    for name, value in model.trainable_state_dict().items():
        assert torch.equal(value, resumed[name]), name
