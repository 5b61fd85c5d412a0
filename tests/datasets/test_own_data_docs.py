"""The configs shown in docs/own_data.md are configs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from flmm_detseg.engine.config_check import check_config

ROOT = Path(__file__).parents[2]
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_data.md").read_text(), re.DOTALL)
    if "read_base" in block
]


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
