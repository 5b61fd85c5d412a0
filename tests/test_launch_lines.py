"""The launch lines of README and docs run as they stand, or stand in a table with the reason why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch_lines import NEEDS_A_GPU, NOT_RUN, ROOT, RUN, TINY, filled, lines, reason
from train_parts import environment


def test_every_line_is_run_or_has_a_reason():
    shown = lines()
    assert len(shown) > 40
    new = [f"{page}: {line}" for line, page in shown.items() if line not in RUN and reason(line) is None]
    assert not new, f"put these in a table of tests/launch_lines.py: {new}"


def test_the_tables_name_no_line_that_is_gone():
    shown = lines()
    assert [line for line in RUN if line not in shown] == []
    tests = {word for why in NOT_RUN.values() for word in re.findall(r"tests/\S+\.py", why)}
    assert [name for name in tests if not (ROOT / name).is_file()] == []


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """As a reader's checkout after `make install` and the first training, but small."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    (folder / "data" / "models").symlink_to(ROOT / "data" / "models")
    for line in (
        "python tools/make_tinyworld.py --out data/tinyworld --images 2500",
        "python tools/train.py CONFIG",
    ):
        done = launch(folder, line)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    checkpoint = json.loads(done.stdout.splitlines()[-1])["checkpoint"]
    Path(checkpoint).rename(folder / "FILE")
    images = sorted((folder / "data" / "tinyworld" / "coco" / "train2017").glob("*.png"))[:8]
    for name in ("cat.jpg", "photo.jpg"):
        (folder / name).write_bytes(images[0].read_bytes())
    (folder / "photos").symlink_to(images[0].parent)
    things = ("a ring", "a star", "a heart", "a flower")
    phrases = [
        json.dumps({"image": image.name, "phrase": things[index % 4]}) for index, image in enumerate(images)
    ]
    (folder / "phrases.jsonl").write_text("\n".join(phrases))
    return folder


def launch(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in a shell, filled by rule."""
    plain = filled(line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        f"{plain} {RUN[line]}", shell=True, cwd=folder, env={**environment(), "PATH": path},
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.case("model/ddp_launch")
@pytest.mark.parametrize("line", RUN)
def test_a_line_runs(line, clone):
    if line in NEEDS_A_GPU and torch.cuda.is_available():
        pytest.skip("would train 7 B here; there are no weights")
    done = launch(clone, line)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    if line in NEEDS_A_GPU:
        assert "TRAINING FAILED: ConfigError: `xtuner train --deepspeed` needs a GPU" in said
        assert (
            clone / "work_dirs" / Path(shlex.split(line.partition("train ")[2])[0]).stem / "FAILED"
        ).is_file()
    elif "xtuner" in line:
        assert "TRAINING FAILED" not in said
        assert (clone / "work_dirs" / Path(TINY).stem / "iter_2.pth").is_file()
    else:
        assert isinstance(json.loads(done.stdout.strip().splitlines()[-1]), dict)


@pytest.mark.long
@pytest.mark.case("security/diskfull")
def test_killed_jobs_end_as_if_nothing_had_happened():
    """A training, an evaluation, a labelling and a world; 20 trials: benchmarks/kill_trials.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_trials.py"), "--trials", "4", "--seed", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
