"""Several processes: what wraps the model, on a machine without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import nn
from train_parts import ROOT

from flmm_detseg.engine import GroundingRunner
from flmm_detseg.engine.training.deepspeed_cpu import start_gloo
from flmm_detseg.engine.training.trainer import default_launcher
from flmm_detseg.errors import ConfigError

RECIPES = sorted((ROOT / "configs").glob("[!_a]*/*.py"))


class OwnWrapper(MMDistributedDataParallel):
    """A user's, which no registry knows."""


@pytest.fixture(scope="module")
def one_process():
    """A process group of one, as a launcher starts it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "0")
            patch.delenv(name)  # what start_gloo sets is gone afterwards
        before = torch.distributed.is_initialized()  # by a run of another test
        if before:
            patch.setenv("LOCAL_RANK", "0")
        start_gloo()
        yield
        if not before:
            torch.distributed.destroy_process_group()


def runner(distributed: bool = True) -> GroundingRunner:
    made = object.__new__(GroundingRunner)
    made._distributed, made.cfg = distributed, Config({})
    made.message_hub = made._visualizer = None
    made.logger = logging.getLogger("runner")
    return made


@pytest.mark.case("model/ddp_launch")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes another road")
@pytest.mark.parametrize(
    "kind",
    [MMDistributedDataParallel, OwnWrapper, "MMDistributedDataParallel", f"{__name__}.OwnWrapper", None],
)
def test_a_wrapper_may_be_a_class_a_name_or_left_out(kind, one_process):
    config = None if kind is None else Config({"wrapper": {"type": kind, "broadcast_buffers": True}}).wrapper
    wrapped = runner().wrap_model(config, nn.Linear(2, 2))
    wanted = OwnWrapper if "Own" in str(kind) else MMDistributedDataParallel
    assert type(wrapped).__name__ == wanted.__name__
    assert wrapped.device_ids is None
    assert wrapped.broadcast_buffers is (kind is not None), "MMEngine's own default is False"


@pytest.mark.case("model/ddp_launch")
def test_what_is_no_wrapper_is_refused_by_name(one_process):
    with pytest.raises(
        ConfigError, match="model_wrapper_cfg.type` is 'MMDistributedDataParalel', which cannot"
    ):
        runner().wrap_model({"type": "MMDistributedDataParalel"}, nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="a class that wraps a model is needed"):
        runner().wrap_model({"type": print}, nn.Linear(2, 2))


def test_one_process_needs_no_wrapper():
    layer = nn.Linear(2, 2)
    assert runner(distributed=False).wrap_model({"type": OwnWrapper}, layer) is layer


def test_every_recipe_that_trains_names_the_runner():
    trained = 0
    for path in RECIPES:
        text = path.read_text()
        if "default_runtime" in text:
            trained += 1
            assert Config.fromfile(path).runner_type is GroundingRunner, path
    assert trained >= 5


def test_the_launcher_is_seen_from_its_variables(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert default_launcher() == "none"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert default_launcher() == "none"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert default_launcher() == "pytorch"
