"""The configs shown in docs/own_data.md are configs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from flmm_detseg.engine.checks.config_check import check_config

ROOT = Path(__file__).parents[2]
PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_data.md").read_text(), re.DOTALL)
BLOCKS = [block for block in PYTHON if "read_base" in block]


def block_with(word: str) -> str:
    (block,) = [block for block in PYTHON if word in block]
    return block


@pytest.mark.parametrize(
    ("number", "head", "evaluation"), [(0, "detection", "coco_eval"), (1, "segmentation", "semseg_eval")]
)
def test_shown_config_takes_the_own_data_everywhere(number, head, evaluation, tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    assert len(BLOCKS) == 2
    assert len(BLOCKS[number].strip().splitlines()) <= 10
    path = tmp_path / "configs/mine.py"
    path.write_text(BLOCKS[number])
    config = Config.fromfile(path)
    check_config(config, "mine.py")
    (evaluated,) = config[evaluation].values()
    for dataset in (config.train_dataloader.dataset, evaluated):
        assert "tinyworld" not in str(dataset.to_dict())
        assert dataset.classes == config.model.heads[head].class_names


def load_with(folder: Path, *parts: str) -> Config:
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "configs/mine.py").write_text("\n".join(parts))
    config = Config.fromfile(folder / "configs/mine.py")
    check_config(config, "mine.py")
    return config


def test_shown_validation_measures_the_own_data(tmp_path):
    config = load_with(tmp_path, BLOCKS[0], block_with("val_evaluator"))
    assert config.val_dataloader.dataset == config.coco_eval.coco_val
    assert config.val_dataloader.dataset.ann_file == "my_data/val.json"
    assert config.train_cfg.val_interval == 100
    assert config.default_hooks.checkpoint.save_best == "coco/AP"


def test_shown_replacements_leave_nothing_of_the_data_before(tmp_path):
    base = "from mmengine.config import read_base\nwith read_base():\n    from .tiny.{} import *\n"
    imports = "from flmm_detseg.datasets import {}\n"
    jsonl = load_with(
        tmp_path / "jsonl",
        base.format("frozen_tiny_llava_refcoco_png"),
        imports.format("JSONLDataset"),
        block_with("type=JSONLDataset"),
    )
    assert set(jsonl.train_dataloader.dataset) == {"type", "file"}
    mix = load_with(
        tmp_path / "mix",
        base.format("detseg_joint"),
        imports.format("MultiTaskMix, TaskBatchSampler, TaskSampler"),
        "boxes, maps, vqa = detection_train, segmentation_train, vqa_train",
        block_with("MultiTaskMix"),
    )
    assert set(mix.train_dataloader.dataset.datasets) == {"boxes", "maps", "vqa"}
