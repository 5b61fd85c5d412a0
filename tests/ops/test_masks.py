from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flmm_detseg.ops.masks import above, mask_areas, mask_iou, mask_scores, pieces, resize_maps, resize_masks


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


def test_scores_of_large_masks_are_summed_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 50, 41, generator=generator)
    logits[1] = -1.0
    masks = logits > 0
    whole = mask_scores(logits, masks)
    expected = [float(m[k].double().sigmoid().mean()) if k.any() else 0.0 for m, k in zip(logits, masks)]
    for pixels in (1, 41, 123, 2049):  # a row, three, all but one
        monkeypatch.setattr("flmm_detseg.ops.masks.SCORE_PIXELS", pixels)
        blocks = mask_scores(logits, masks)
        assert blocks.dtype == torch.float32
        torch.testing.assert_close(blocks, torch.tensor(expected), rtol=2e-7, atol=0)
        torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=0)


def test_above_is_the_comparison():
    maps = torch.tensor([[0.0, -0.0, 1e-30, float("nan"), -1.0, float("inf")]])
    assert torch.equal(above(maps, 0.0), maps > 0)
    assert above(maps, 0.0).dtype == torch.bool
    assert torch.equal(above(maps.double().bfloat16().float(), 0.5), maps > 0.5)


def test_areas_are_counts():
    masks = torch.rand(4, 9, 7) > 0.5
    assert mask_areas(masks).tolist() == [int(mask.sum()) for mask in masks]
    assert mask_areas(masks[:, ::2, 1:]).tolist() == masks[:, ::2, 1:].sum((1, 2)).tolist()
    assert mask_areas(masks[:0]).shape == (0,)


def test_pieces_cover_all_masks_and_fit(monkeypatch):
    monkeypatch.setattr("flmm_detseg.ops.masks.PIECE_PIXELS", 100)
    assert list(pieces(range(5), (5, 10))) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(pieces(range(2), (50, 10))) == [slice(0, 1), slice(1, 2)]
    assert list(pieces([], (5, 10))) == []
