"""LLaVA-Det-Seg as a user runs it: stages by checkpoint, the 7B recipe on the tiny model under ZeRO-2, every tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from train_parts import ROOT, environment

TINY = ROOT / "configs" / "tiny"
SHORT = ["default_hooks.logger.interval=1", "custom_hooks.1.num_images=1"]


def run(folder: Path, tool: str, *arguments: str) -> dict:
    """Runs a tool in a folder of its own; the figures of its last line."""
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detseg")
    (folder / "data").mkdir()
    (folder / "data" / "models").symlink_to(ROOT / "data" / "models")
    run(folder, "make_tinyworld.py", "--out", "data/tinyworld", "--images", "60", "--seed", "3")
    return folder


@pytest.fixture(scope="module")
def joint(world: Path) -> dict:
    """A joint model that starts from a detection head of its own stage."""
    options = ["--cfg-options", "train_cfg.max_iters=3", "train_dataloader.batch_size=4", *SHORT]
    alone = run(world, "train.py", str(TINY / "detseg_detection.py"), *options)
    assert alone["lmm_sha256_before"] == alone["lmm_sha256_after"]
    start = [
        f'model.init_from=["{alone["checkpoint"]}"]',
        'model.new_parts=["lmm.","heads.segmentation.","heads.phrase."]',
    ]
    options[1] = "train_cfg.max_iters=8"
    figures = run(world, "train.py", str(TINY / "detseg_stability.py"), *options, *start)
    assert figures["lmm_sha256_before"] == alone["lmm_sha256_before"] == figures["lmm_sha256_after"]
    assert figures["trainable_parameters"] > 1_000_000
    heads = {name.split(".")[0] for name in figures["losses"]}
    assert {"detection", "segmentation", "phrase", "language", "lmm"} <= heads
    return figures


def test_every_evaluation_reads_the_joint_model(world: Path, joint: dict) -> None:
    arguments = [str(TINY / "detseg_stability.py"), "--checkpoint", joint["checkpoint"], "--limit", "4"]
    (boxes,) = run(world, "eval_coco.py", *arguments)["metrics"].values()
    assert 0 <= boxes["AP"] <= boxes["AP50"] <= 1
    assert any(name.startswith("mask_") for name in boxes) or boxes["num_boxes"] == 0
    (maps,) = run(world, "eval_semseg.py", *arguments)["metrics"].values()
    assert 0 <= maps["mIoU"] <= 1
    (phrases,) = run(world, "eval_refcoco.py", *arguments, "--splits", "val")["metrics"].values()
    assert phrases["num_phrases"] == 4
    (kept,) = run(world, "eval_forgetting.py", *arguments)["metrics"].values()
    assert kept["base_accuracy"] > 0.3
    assert kept["kl_mean"] >= 0
    (answers,) = run(world, "eval_vqa.py", *arguments)["metrics"].values()
    assert answers["accuracy"] == kept["adapted_accuracy"]


def test_a_training_validates_boxes_as_the_documentation_shows(world: Path) -> None:
    """The lines of docs/own_data.md; the best checkpoint is kept."""
    (lines,) = re.findall(
        r"```python\n([^`]*val_evaluator[^`]*)```", (ROOT / "docs" / "own_data.md").read_text(), re.DOTALL
    )
    shutil.copytree(ROOT / "configs", world / "configs")
    base = (
        "from mmengine.config import read_base\nwith read_base():\n    from .tiny.detseg_detection import *\n"
    )
    (world / "configs" / "watched.py").write_text(base + lines)
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=1", "train_dataloader.batch_size=4", *SHORT]
    figures = run(
        world,
        "train.py",
        "configs/watched.py",
        "--cfg-options",
        *options,
        "model.heads.detection.score_threshold=0.0",
    )
    (log,) = (world / figures["work_dir"]).glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    measured = [row for row in rows if "coco/AP" in row]
    assert [row["step"] for row in measured] == [1, 2]
    assert all(0 <= row["coco/AP"] <= row["coco/AP50"] <= 1 and row["coco/num_boxes"] > 0 for row in measured)
    assert list((world / figures["work_dir"]).glob("best_coco_AP_*.pth"))


def test_switched_retention_changes_no_answer(world: Path, joint: dict) -> None:
    arguments = [str(TINY / "detseg_switched.py"), "--checkpoint", joint["checkpoint"], "--limit", "6"]
    (figures,) = run(world, "eval_forgetting.py", *arguments)["metrics"].values()
    assert figures["identical"] == 1.0
    assert figures["kl_mean"] == 0.0
    assert figures["forgetting_points"] == 0.0


def test_an_instruction_becomes_a_picture_and_json(world: Path, joint: dict) -> None:
    image = next((world / "data" / "tinyworld" / "coco" / "val2017").glob("*.png"))
    figures = run(
        world, "infer.py", str(TINY / "detseg_stability.py"), "--checkpoint", joint["checkpoint"],
        "--image", str(image), "--instruction", "detect everything and segment the grass. what colour is the star ?",
        "--out", "out", "--score-threshold", "0.01",
    )  # fmt: skip
    (result,) = figures["results"]
    assert (world / result["picture"]).stat().st_size > 1000
    content = json.loads((world / result["json"]).read_text())
    assert [step["kind"] for step in content["steps"]] == ["detect", "segment", "answer"]
    assert any(region["kind"] == "segment" for region in content["regions"])


@pytest.mark.long
def test_the_7b_recipe_trains_the_tiny_model_under_zero2_with_a_rate_for_each_part(world: Path) -> None:
    figures = run(
        world, "train.py", str(TINY / "detseg_lora_on_tiny.py"),
        "--deepspeed", str(ROOT / "configs" / "deepspeed" / "zero2_cpu.json"),
        "--cfg-options", "train_cfg.max_iters=4", *SHORT,
    )  # fmt: skip
    (log,) = (world / figures["work_dir"]).glob("*/vis_data/scalars.json")
    rates = [json.loads(line) for line in log.read_text().splitlines()]
    last = [row for row in rates if "rest_lr" in row][-1]
    assert last["lora_lr"] == pytest.approx(2.0 * last["rest_lr"])
    assert last["vision_tower_lr"] == pytest.approx(0.5 * last["rest_lr"])
    (text,) = (world / figures["work_dir"]).glob("*/*.log")
    assert "Optimizer group vision_tower: lr" in text.read_text()
