"""Which SAM a name means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sam2_parts import make_sam2
from sam_parts import SIZES
from transformers import Sam2ImageProcessorFast

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.refiners import SAM2Refiner, SAMRefiner, sam_build
from flmm_detseg.refiners.load_refiner import load_refiner

TINY_SAM = str(Path(__file__).resolve().parents[2] / "data" / "models" / "tiny_sam")


def test_folders_of_both_kinds(tmp_path):
    sam = load_refiner(TINY_SAM)
    assert type(sam) is SAMRefiner
    make_sam2().save_pretrained(tmp_path)
    Sam2ImageProcessorFast(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    sam2 = load_refiner(str(tmp_path))
    assert type(sam2) is SAM2Refiner
    for refiner in (sam, sam2):
        assert (refiner.use_text, refiner.use_mask, refiner.use_box) == (False, True, True)


def test_the_name_of_a_file_says_its_variant(tmp_path, monkeypatch):
    for name in ("vit_l", "vit_h"):
        monkeypatch.setitem(sam_build.VARIANTS, name, SIZES)
    model = sam_build.build_sam("vit_l")
    for name in ("sam_vit_l_0b3195.pth", "weights.pth"):
        torch.save(model.state_dict(), tmp_path / name)
    refiner = load_refiner(str(tmp_path / "sam_vit_l_0b3195.pth"))
    assert type(refiner) is SAMRefiner
    assert all(torch.equal(a, b) for a, b in zip(refiner.model.parameters(), model.parameters()))
    with pytest.raises(ConfigError, match=r"weights\.pth: the name .*vit_b, vit_l, vit_h"):
        load_refiner(str(tmp_path / "weights.pth"))
    with pytest.raises(CheckpointError, match=r"no SAM weights at .*sam_vit_h\.pth"):
        load_refiner(str(tmp_path / "sam_vit_h.pth"))


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        load_refiner("./gone")
    for text, message in (
        ('{"model_type": "sam"}', "model_type is 'sam'"),
        ("no json", "cannot be read"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_refiner(str(tmp_path))
