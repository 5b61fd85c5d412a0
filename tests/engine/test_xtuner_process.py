"""A failure of `xtuner train` is visible although xtuner ends with exit code 0; so is the lack of a GPU."""

from __future__ import annotations

import sys

import pytest
import torch
from mmengine.config import Config
from train_parts import RECIPE

from flmm_detseg.engine import xtuner_process
from flmm_detseg.engine.xtuner_process import FAILED
from flmm_detseg.errors import ConfigError

SCRIPT = "/somewhere/xtuner/tools/train.py"


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards


def asked(monkeypatch, *arguments: str) -> str:
    """What a recipe answers to XTuner's first question in its own process."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(RECIPE), *arguments])
    return Config.fromfile(RECIPE).get("framework", "mmengine").lower()


@pytest.mark.case("model/ddp_launch")
def test_deepspeed_without_a_gpu_is_refused_with_the_command_to_use(monkeypatch, hook, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"python tools/train\.py CONFIG --deepspeed configs/deepspeed/zero2_cpu"
    ):
        asked(monkeypatch, "--deepspeed", "deepspeed_zero2", "--work-dir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert asked(monkeypatch, "--deepspeed", "deepspeed_zero2", "--work-dir", str(tmp_path)) == "mmengine"


@pytest.mark.case("model/ddp_launch")
def test_a_failure_is_the_last_word_and_a_file_that_the_next_start_removes(
    monkeypatch, hook, tmp_path, capsys
):
    assert asked(monkeypatch, "--work-dir", str(tmp_path)) == "mmengine"
    for error, traced in ((ConfigError("no such thing"), False), (KeyError("a bug"), True)):
        sys.excepthook(type(error), error, None)
        said = capsys.readouterr().err
        assert f"TRAINING FAILED: {type(error).__name__}: " in said.splitlines()[-2]
        assert "exit code 0 all the same" in said.splitlines()[-1]
        assert (len(said.splitlines()) > 2) is traced
        assert (tmp_path / FAILED).read_text().startswith(f"TRAINING FAILED: {type(error).__name__}")
    asked(monkeypatch, f"--work-dir={tmp_path}")
    assert not (tmp_path / FAILED).exists()


def test_other_programs_are_left_alone(monkeypatch, hook):
    before = sys.excepthook
    monkeypatch.setattr(sys, "argv", ["tools/train.py", str(RECIPE), "--deepspeed", "x"])
    assert xtuner_process.framework == "mmengine"
    assert sys.excepthook is before
    with pytest.raises(AttributeError):
        xtuner_process.nothing  # noqa: B018
