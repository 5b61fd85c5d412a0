"""supervision.Detections of results."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from found import region, result

from flmm_detseg.errors import MissingDependencyError
from flmm_detseg.inference.regions import Region


def test_detections_are_the_regions():
    import supervision

    mask = np.zeros((12, 17), dtype=bool)
    mask[2:7, 3:9] = True
    other = ~mask
    found = result(
        region(mask, "a", 0.9), region(other, "b", 0.4), region(mask & other, "c"), region(mask, "a", 0.2)
    )
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.mask, [mask, other, mask])
    np.testing.assert_array_equal(detections.xyxy[0], [3, 2, 9, 7])
    np.testing.assert_allclose(detections.confidence, [0.9, 0.4, 0.2], rtol=1e-6)
    assert detections.class_id.tolist() == [0, 1, 0]
    assert detections["class_name"].tolist() == ["a", "b", "a"]
    picture = supervision.MaskAnnotator().annotate(np.zeros((12, 17, 3), np.uint8), detections)
    assert picture[3, 4].any()
    boxes = result(region(mask), Region("detect", "cat", 0.7, (1.0, 2.0, 5.0, 4.5))).to_supervision()
    assert boxes.mask is None
    assert len(boxes) == 2
    assert len(result().to_supervision()) == 0


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flmm_detseg\[supervision\]'"):
        result().to_supervision()
