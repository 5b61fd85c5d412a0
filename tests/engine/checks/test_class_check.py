"""Class names of heads and data."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets import COCOInstancesDataset, ConcatMix
from flmm_detseg.engine.checks.class_check import check_classes
from flmm_detseg.errors import ConfigError


@pytest.fixture
def boxes(tmp_path) -> COCOInstancesDataset:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return COCOInstancesDataset(str(tmp_path / "boxes.json"), str(tmp_path))


def model(*names: str, head: str = "detection") -> SimpleNamespace:
    return SimpleNamespace(heads={head: SimpleNamespace(class_names=names, tasks={"detection"})})


def test_equal_lists_pass(boxes) -> None:
    check_classes(model("cat", "dog"), ConcatMix([boxes, boxes]))
    check_classes(SimpleNamespace(heads={}), boxes)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("dog", "cat"), "label 0 is 'dog' in the head and 'cat' in the data"),
        (("cat",), "label 1 is 'nothing' in the head and 'dog'"),
    ],
)
def test_a_difference_is_named_also_inside_a_mix(boxes, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        check_classes(model(*names), ConcatMix([boxes]))
    assert "boxes.json" in str(error.value)
    with pytest.raises(ConfigError, match=r"`model\.heads\.boxes\.class_names`"):
        check_classes(model(*names, head="boxes"), boxes)
