"""Locks of files that a run writes: they keep other processes out, and end with their holder."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from train_parts import RECIPE

from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.engine.training.loop import ResumableTrainLoop
from flmm_detseg.engine.training.start import LOCK
from flmm_detseg.engine.training.trainer import TrainOptions, train
from flmm_detseg.errors import RunError
from flmm_detseg.labelling.run import LabelOptions, pseudo_label
from flmm_detseg.utils.lock import hold, holding, release

HOLDER = """
import os, sys, time
from pathlib import Path
from flmm_detseg.utils.lock import hold
hold(Path(sys.argv[1]), "a test")
if os.fork() == 0:  # as a data worker that outlives its run
    time.sleep(60)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def locked(tmp_path):
    """A lock of another process, which has a child of its own."""
    file = tmp_path / "run" / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield file, process
    process.kill()
    process.wait()


@pytest.mark.case("security/two_runs")
def test_a_second_process_is_refused_until_the_first_is_killed(locked):
    file, process = locked
    with pytest.raises(
        RunError, match=rf"training in x: another program does this now \(process {process.pid} on "
    ):
        hold(file, "training in x")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # the system may take a moment
        try:
            hold(file, "training in x")
            break
        except RunError:
            time.sleep(0.01)
    release(file)


@pytest.mark.case("security/two_runs")
def test_trainings_and_labellings_take_it_first(locked, tmp_path):
    file, process = locked
    work_dir = file.parent
    options = TrainOptions(config=str(RECIPE), work_dir=str(work_dir))
    for taken, run in (
        (LOCK, lambda: train(options)),
        # `xtuner train` itself.
        (
            LOCK,
            lambda: ResumableTrainLoop.run(SimpleNamespace(runner=SimpleNamespace(work_dir=str(work_dir)))),
        ),
        (
            ".out.json.lock",
            lambda: pseudo_label(LabelOptions("images", str(work_dir / "out.json"), "detector")),
        ),
        (".world.lock", lambda: write_world(work_dir / "world", WorldSpec(60, 0))),
    ):
        file.replace(work_dir / taken)
        file = work_dir / taken
        with pytest.raises(RunError, match=f"another program does this now .process {process.pid} "):
            run()
    assert sorted(path.name for path in work_dir.iterdir()) == [".world.lock"], "nothing was written"


@pytest.mark.case("security/two_runs")
def test_the_same_process_takes_it_again_and_a_block_keeps_what_was_locked(tmp_path):
    file = tmp_path / ".lock"
    with holding(file, "a"), holding(file, "b"):
        hold(file, "c")
    with holding(file, "a"):
        pass
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; from flmm_detseg.utils.lock import hold;"
         "hold(Path(sys.argv[1]), 'd')", str(file)], check=False,
    )  # fmt: skip
    assert other.returncode == 0, "it was given back"
    release(file)


@pytest.mark.case("security/two_runs")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_blocks_nobody(number, tmp_path, monkeypatch, capsys):
    def lockf(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    hold(tmp_path / ".lock", "training in x")
    assert "cannot be locked on this file system (no locks here)" in capsys.readouterr().err
    release(Path(tmp_path / ".lock"))
