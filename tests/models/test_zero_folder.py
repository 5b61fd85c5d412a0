"""DeepSpeed folders as MMEngine writes them load without running anything they hold."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from flmm_detseg.errors import CheckpointError
from flmm_detseg.models.checkpoint import check_folder, load_checkpoint


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write(folder: Path, **extra) -> Path:
    folder.mkdir(parents=True)
    weights = OrderedDict(
        a=torch.arange(6.0).reshape(2, 3).bfloat16(), b=torch.nn.Parameter(torch.ones(4))[::2]
    )
    torch.save({"module": weights, "ds_version": "0.18.9", **extra}, folder / "mp_rank_00_model_states.pt")
    return folder


def test_a_folder_with_mmengine_objects_loads(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    folder = write(
        tmp_path / "iter_5.pth", message_hub={"log_scalars": OrderedDict(loss=history)}, meta={"iter": 5}
    )
    with pytest.raises(Exception, match="Weights only load failed|weights_only"):
        torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded["a"], torch.arange(6.0).reshape(2, 3).bfloat16())
    assert torch.equal(loaded["b"], torch.ones(2))


def test_code_in_a_folder_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    folder = write(tmp_path / "iter_5.pth", optimizer=Evil(marker))
    assert set(load_checkpoint(folder)) == {"a", "b"}
    assert not marker.exists()


def test_code_in_place_of_the_weights_is_an_error(tmp_path):
    marker = tmp_path / "ran"
    folder = tmp_path / "iter_6.pth"
    folder.mkdir()
    torch.save(Evil(marker), folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(folder)
    assert not marker.exists()


def test_what_deepspeed_writes_passes_the_check_before_resuming(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    states = dict(
        scaler=LossScaler(scale=1.0),
        stage=ZeroStageEnum.gradients,
        slices=fragment_address(4, 0),
        names={"a"},
    )
    check_folder(write(tmp_path / "iter_5.pth", **states))


def test_code_or_other_objects_are_refused_before_resuming_and_do_not_run(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states.pt was refused.*system"):
        check_folder(write(tmp_path / "evil.pth", optimizer=Evil(marker)))
    with pytest.raises(CheckpointError, match="HistoryBuffer"):
        check_folder(write(tmp_path / "object.pth", history=HistoryBuffer([1.0], [1])))
    assert not marker.exists()


def test_a_torchscript_program_in_a_folder_is_refused(tmp_path):
    folder = tmp_path / "iter_7.pth"
    folder.mkdir()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), folder / "mp_rank_00_model_states.pt")
    for read in (check_folder, load_checkpoint):
        with pytest.raises(CheckpointError, match="TorchScript"):
            read(folder)
