"""The quickstart as a user starts it, in its fast form: every step for real, with few iterations and images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from train_parts import environment

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / "data" / "models"


@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_fast_quickstart_makes_numbers_and_pictures(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").symlink_to(MODELS)
    world = REPOSITORY / "data" / "tinyworld"
    if world.is_dir():
        (tmp_path / "data" / "tinyworld").symlink_to(world)
    command = [sys.executable, str(REPOSITORY / "tools" / "quickstart.py"), "--fast"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["fast"] is True
    results = json.loads((tmp_path / figures["results"]).read_text())
    runs = {"trained", "all sentences", "control", "wrong phrases", "without training"}
    assert set(results["refcoco"]) == runs
    assert set(results["refcoco"]["trained"]) == {"val", "testA", "testB"}
    assert "coarse_best_threshold_cIoU" in results["refcoco"]["control"]["val"]
    assert {"average_recall_" + group for group in ("all", "thing", "stuff", "singular", "plural")} <= {
        name.removeprefix("refined_") for name in results["png"]["trained"]
    }
    for training in results["trainings"].values():
        assert len(training["lmm_sha256_before"]) == 64
        assert training["lmm_sha256_before"] == training["lmm_sha256_after"]
    assert (
        results["trainings"]["trained"]["lmm_sha256_before"]
        != results["trainings"]["control"]["lmm_sha256_before"]
    )
    page = (tmp_path / figures["report"]).read_text()
    assert page.count("data:image/png;base64,") >= 10
    assert "fast trial" in page
    pictures = [path.name for path in (tmp_path / "work_dirs" / "quickstart" / "pictures").iterdir()]
    for kind in (
        "phrases_and_their_masks",
        "attention_heads",
        "coarse_refined_target",
        "trained_beside_control",
    ):
        assert sum(name.startswith(kind) for name in pictures) >= 2, pictures


@pytest.mark.e2e
@pytest.mark.long
def test_a_failing_step_fails_the_quickstart(tmp_path):
    """Without the tiny weights the control cannot be made; the step and the reason are named."""
    (tmp_path / "data").mkdir()
    world = REPOSITORY / "data" / "tinyworld"
    if world.is_dir():
        (tmp_path / "data" / "tinyworld").symlink_to(world)
    command = [sys.executable, str(REPOSITORY / "tools" / "quickstart.py"), "--fast"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 2
    assert "control_lmm failed with status" in run.stderr
    assert "data/models/tiny_llava" in run.stderr
