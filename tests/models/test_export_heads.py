"""Trained parts alone: the same model from a smaller file that says which LMM it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flmm_detseg.engine.training.checkpoint_hook import LMM_INFO
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models import export_heads as module
from flmm_detseg.models.checkpoint import fingerprint, read_checkpoint
from flmm_detseg.models.export_heads import export_heads
from flmm_detseg.models.from_config import model_from_config, read_config

TINY = "configs/tiny/frozen_tiny_llava_refcoco_png.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """As a training wrote it before checkpoints recorded their LMM."""
    model = model_from_config(TINY, untrained=True, device="cpu")
    state = {name: value.clone() for name, value in model.trainable_state_dict().items()}
    hub = {"runtime_info": {module._LMM_INFO: {"before": fingerprint(model.lmm)}}}
    file = tmp_path_factory.mktemp("run") / "iter_6.pth"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1000, 1000)}}}
    torch.save({"meta": {"iter": 6}, "state_dict": state, "message_hub": hub, "optimizer": optimizer}, file)
    return file


def test_the_note_of_a_run_has_one_name():
    assert module._LMM_INFO == LMM_INFO


def test_exported_heads_are_the_same_model(checkpoint, tmp_path):
    out = tmp_path / "new" / "heads.pth"
    figures = export_heads(TINY, checkpoint, out)
    assert figures["lmm_recorded"] is True
    assert out.stat().st_size < checkpoint.stat().st_size - 3e6
    before, after = read_checkpoint(checkpoint), read_checkpoint(out)
    assert before.identity is None
    assert after.identity is not None
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(value, after.tensors[name]) for name, value in before.tensors.items())
    assert set(torch.load(out, weights_only=True)) == {"meta", "state_dict"}
    with pytest.raises(ConfigError, match="exists already"):
        export_heads(TINY, checkpoint, out)


def test_exported_heads_are_refused_by_another_lmm(checkpoint, tmp_path):
    export_heads(TINY, checkpoint, tmp_path / "heads.pth")
    other = read_config(TINY)
    other.model.lmm.pretrained = "data/models/tiny_llava_streams"
    with pytest.raises(CheckpointError, match="another LMM"):
        model_from_config(other, tmp_path / "heads.pth", device="cpu")


def test_what_a_checkpoint_does_not_prove_is_not_recorded(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["message_hub"]
    torch.save(content, tmp_path / "plain.pth")
    figures = export_heads(TINY, tmp_path / "plain.pth", tmp_path / "heads.pth")
    assert figures["lmm_recorded"] is False
    assert read_checkpoint(tmp_path / "heads.pth").identity is None
