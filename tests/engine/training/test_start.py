"""What a run may start from: figures of the interrupted run, kinds of checkpoints, pointers, code in the files."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flmm_detseg.engine.training import start
from flmm_detseg.engine.training.start import (
    BATCH,
    batch_figures,
    check_resume,
    last_checkpoint,
    prepare_start,
)
from flmm_detseg.errors import CheckpointError

FIGURES = {"processes": 2, "batch_size": 4, "accumulation": 2}


@pytest.fixture
def run(tmp_path):
    """A run without DeepSpeed, not yet started."""
    return SimpleNamespace(
        logger=logging.getLogger("start"),
        work_dir=str(tmp_path),
        optim_wrapper={"accumulative_counts": 2},
        _resume=True,
        _load_from=None,
    )


def write(path: Path, done: int = 6, **figures: int) -> Path:
    meta = {"iter": done, "epoch": 0, **({BATCH: figures} if figures else {})}
    torch.save({"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": meta}, path)
    return path


def test_the_same_figures_go_on(run, tmp_path, caplog):
    check_resume(run, write(tmp_path / "a.pth", **FIGURES), FIGURES, max_iters=10)
    assert not caplog.records


@pytest.mark.parametrize("name", FIGURES)
def test_another_cut_of_the_data_is_refused_with_both_values(name, run, tmp_path):
    path = write(tmp_path / "a.pth", **{**FIGURES, name: 7})
    with pytest.raises(CheckpointError, match=rf"{name} = 7, this run has {name} = {FIGURES[name]}"):
        check_resume(run, path, FIGURES, max_iters=10)


def test_the_middle_of_an_accumulation_is_refused(run, tmp_path):
    path = write(tmp_path / "a.pth", done=5, **FIGURES)
    with pytest.raises(CheckpointError, match="after iteration 5, in the middle of an accumulation of 2"):
        check_resume(run, path, FIGURES, max_iters=10)
    check_resume(run, path, FIGURES, max_iters=5)  # nothing is left to train


def test_a_checkpoint_without_figures_is_accepted_with_a_warning(run, tmp_path, caplog):
    check_resume(run, write(tmp_path / "a.pth"), FIGURES, max_iters=10)
    assert "does not say with how many processes" in caplog.text
    assert "'batch_size': 4" in caplog.text


def test_each_kind_of_run_resumes_from_its_own_kind_only(run, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is a DeepSpeed folder; to resume from it add --deepspeed"):
        check_resume(run, tmp_path, FIGURES, max_iters=10)
    monkeypatch.setattr(start, "uses_deepspeed", lambda run: True)
    with pytest.raises(CheckpointError, match="without DeepSpeed; to resume from it leave out --deepspeed"):
        check_resume(run, write(tmp_path / "a.pth"), FIGURES, max_iters=10)


def test_tensors_alone_are_no_run_to_go_on_with(run, tmp_path):
    torch.save({"state_dict": {}, "meta": {}, "message_hub": {}}, tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="no state of a run"):
        check_resume(run, tmp_path / "best.pth", FIGURES, max_iters=10)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_optimizer_states_is_refused_before_deepspeed_reads_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "uses_deepspeed", lambda run: True)
    folder = tmp_path / "iter_6.pth"
    folder.mkdir()
    meta = {"iter": 6, BATCH: FIGURES}
    states = {"module": {}, "optim_wrapper": {}, "message_hub": {}, "meta": meta}
    torch.save(states, folder / "mp_rank_00_model_states.pt")
    optim = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": torch.ones(2)}, optim)
    check_resume(run, folder, FIGURES, max_iters=10)
    torch.save({"optimizer_state_dict": Evil(tmp_path / "ran")}, optim)
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_1.* was refused.*mkdir"):
        check_resume(run, folder, FIGURES, max_iters=10)
    assert not (tmp_path / "ran").exists()


def test_automatic_resume_names_the_checkpoint_and_checks_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "get_world_size", lambda: 2)
    monkeypatch.setattr(start, "unwrap", lambda model: model)
    run.model = SimpleNamespace(heads={})
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=4))
    assert batch_figures(run, loader) == FIGURES
    path = write(tmp_path / "iter_6.pth", **FIGURES)
    prepare_start(run, loader, max_iters=10)
    assert run._load_from is None, "from the beginning where no run has saved"
    (tmp_path / "last_checkpoint").write_text(str(path))
    prepare_start(run, loader, max_iters=10)
    assert run._load_from == str(path)


@pytest.mark.case("model/empty_pointer")
@pytest.mark.parametrize("content", [b"", b"\n", b".", b"\xff\xfe", b"\0" * 40], ids=repr)
def test_a_pointer_that_a_power_cut_emptied_is_named_with_the_newest_whole_checkpoint(content, tmp_path):
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"last_checkpoint names no checkpoint.*there is no complete one beside"
    ):
        last_checkpoint(tmp_path)
    for done in (2, 10):
        write(tmp_path / f"iter_{done}.pth", **FIGURES)
    (tmp_path / "iter_12.pth").write_bytes(b"half")
    (tmp_path / "iter_14.pth").touch()
    newest = re.escape(str(tmp_path / "iter_10.pth"))
    with pytest.raises(CheckpointError, match=f"newest complete one beside it: --resume {newest}"):
        last_checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text("/gone/iter_20.pth")
    with pytest.raises(CheckpointError, match=f"does not exist; .*--resume {newest}"):
        last_checkpoint(tmp_path)


def test_the_pointer_finds_a_moved_folder_and_a_replaced_checkpoint_and_never_starts_anew(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("/moved/away/iter_6.pth")
    with pytest.raises(CheckpointError, match=r"names /moved/away/iter_6\.pth, which does not exist"):
        last_checkpoint(tmp_path)
    (tmp_path / "iter_6.pth").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "iter_6.pth"
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_8.pth"))
    (tmp_path / "replaced_iter_8.pth").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "replaced_iter_8.pth"
