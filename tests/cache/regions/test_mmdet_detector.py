"""A detector of mmdet as source of objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from flmm_detseg.cache.regions.mmdet_detector import MMDET_MODELS, MMDetDetector
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.structures import Sample

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
MODEL = dict(
    type="FCOS",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=4,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
    ),
    neck=dict(type="FPN", in_channels=[4, 8], out_channels=8, num_outs=2),
    bbox_head=dict(
        type="FCOSHead",
        num_classes=2,
        in_channels=8,
        stacked_convs=1,
        feat_channels=8,
        strides=[4, 8],
        regress_ranges=((-1, 64), (64, 1e8)),
        norm_cfg=None,
    ),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=9
    ),
)
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor")),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmdet")
    loader = dict(dataset=dict(pipeline=PIPELINE))
    Config(dict(model=MODEL, test_dataloader=loader)).dump(folder / "fcos.py")
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        model = MMDET_MODELS.build(Config(MODEL).to_dict())
    torch.save({"state_dict": model.state_dict()}, folder / "fcos.pth")
    return folder


def test_boxes_are_in_original_pixels(files):
    detector = MMDetDetector(
        str(files / "fcos.py"), str(files / "fcos.pth"), ("text", "person"), threshold=0.0
    )
    found = detector.find(Sample("one", PICTURE, "", ()))
    assert found.boxes_xyxy.shape == (9, 4)
    assert found.boxes_xyxy.dtype == np.float32
    # The pipeline enlarges the image to 71 x 128; boxes are of the 50 x 90 original.
    assert (found.boxes_xyxy[:, 2:] <= (90, 50)).all()
    assert found.boxes_xyxy[:, 2].max() > 60
    assert set(found.labels) <= {"text", "person"}
    least = float(np.sort(found.scores)[-3])
    strict = MMDetDetector(str(files / "fcos.py"), str(files / "fcos.pth"), threshold=least)
    assert len(strict.find(Sample("one", PICTURE, "", ())).scores) == 3


def test_files_must_exist_and_fit(files, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        MMDetDetector(str(tmp_path / "no.py"), str(files / "fcos.pth"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    for name in ("other.pth", "damaged.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match="no weights of this detector"):
            MMDetDetector(str(files / "fcos.py"), str(tmp_path / name))
