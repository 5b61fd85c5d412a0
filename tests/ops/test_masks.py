from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flmm_detseg.ops.masks import mask_iou, mask_scores, resize_maps, resize_masks


def test_resize_masks_takes_the_nearest_pixel():
    masks = torch.eye(4, dtype=torch.bool)[None]
    halved = resize_masks(masks, (2, 2))
    assert halved.dtype == torch.bool
    assert halved[0].tolist() == masks[0, ::2, ::2].tolist()
    assert resize_masks(masks, (8, 8)).sum() == 4 * masks.sum()


@pytest.mark.parametrize("function", [resize_masks, resize_maps])
def test_resizing_no_masks(function):
    assert function(torch.zeros(0, 4, 6), (3, 5)).shape == (0, 3, 5)
    assert function(torch.zeros(0, 4, 6), (4, 6)).shape == (0, 4, 6)


def test_resize_maps_is_bilinear_in_float32():
    maps = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = F.interpolate(maps.float()[None], size=(9, 4), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_maps(maps, (9, 4)), expected)
    assert resize_maps(maps.bfloat16(), (5, 7)).dtype == torch.float32


def test_mask_iou_broadcasts_and_defines_empty():
    first = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    second = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    first[0, 0, :2] = True
    second[0, 0, 1:3] = True
    iou = mask_iou(first, second)
    assert iou.shape == (2, 3)
    assert iou[0, 0] == pytest.approx(4 / 12)
    assert iou[0, 1] == 0
    assert iou[1].tolist() == [0, 0, 0]


def test_mask_scores_average_inside_only():
    logits = torch.full((2, 2, 2), -9.0)
    logits[0, 0] = torch.tensor([0.0, 2.0])
    masks = logits > -1
    scores = mask_scores(logits, masks)
    assert scores[0] == pytest.approx(float(torch.tensor([0.0, 2.0]).sigmoid().mean()))
    assert scores[1] == 0
