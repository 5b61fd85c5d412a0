"""The partition study finds what spills over, holds it against geometry, and draws what it says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("partition_study")
    # One small size: the real ones take seconds each.
    monkeypatch.setattr(module, "SIZES", {"phone 1170x2532": (480, 336)})
    return module


def test_figures_and_pictures(study, monkeypatch, capsys, tmp_path):
    arguments = ["--screens", "2", "--streams", "1", "--frames", "6", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["partition_study.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        study.run_tool(study.main)
    assert stop.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = figures["edits"]["phone 1170x2532"]["png"]["dilations"]
    assert [cells[str(dilate)]["changed_max"] for dilate in (1, 2, 3)] == [0, 0, 0]
    shares = [cells[str(dilate)]["object_share"] for dilate in range(4)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    for kind in ("camera", "slides", "screen"):
        assert figures["streams"][f"{kind}/png"]["0"]["exact_share"] == 1
        # Blocks of 16 pixels are two patches of 8.
        assert figures["streams"][f"{kind}/jpeg"]["0"]["exact_share"] == 0
        assert figures["streams"][f"{kind}/jpeg"]["2"]["exact_share"] == 1
    assert figures["others"]["scrolled 7 px"]["equal_share"] < 0.5
    assert len(figures["pictures"]) == 4
    for file in figures["pictures"]:
        assert Path(file).stat().st_size < 150_000
        assert np.asarray(Image.open(file).convert("RGB")).std() > 10


def test_a_change_beside_its_box_is_counted_until_it_is_covered(study):
    processor = study.make_processor(336, 14)
    image = np.full((336, 336, 3), 90, dtype=np.uint8)
    other = image.copy()
    other[140:154, 140:154] = 10
    other[145, 170] = 10  # two patches to the right of the box's one
    before, after = (study.view(processor, picture) for picture in (image, other))
    boxes = np.array([(140, 140, 154, 154)])
    counts = [study.changed_outside(before, after, boxes, dilate)[0] for dilate in range(4)]
    assert counts == [1, 1, 0, 0]
    assert study.changed_outside(before, after, boxes, 1)[1] == pytest.approx(9 / 576)


def test_what_geometry_rules_out_is_an_error(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "needed_dilation", lambda grid, reach: 0)
    with pytest.raises(DataError, match="phone 1170x2532, jpeg 75: .* at dilation 0"):
        study.benchmark(2, 1, 6, 0, tmp_path)
