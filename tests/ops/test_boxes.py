from __future__ import annotations

import torch
from torchvision.ops import masks_to_boxes as inclusive_boxes

from flmm_detseg.ops.boxes import masks_to_boxes, scale_boxes


def test_boxes_are_half_open_and_tight():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:5, 1:4] = True
    masks[1, 0, 7] = True
    boxes = masks_to_boxes(masks)
    assert boxes.tolist() == [[1, 2, 4, 5], [7, 0, 8, 1], [0, 0, 0, 0]]


def test_boxes_of_random_masks_agree_with_torchvision():
    masks = torch.rand(20, 9, 13, generator=torch.Generator().manual_seed(0)) > 0.9
    masks = masks[masks.any((-2, -1))]
    expected = inclusive_boxes(masks) + torch.tensor([0, 0, 1, 1])
    assert torch.equal(masks_to_boxes(masks), expected)


def test_no_masks_no_boxes():
    assert masks_to_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


def test_scale_boxes_uses_each_axis_own_factor():
    boxes = torch.tensor([[0.0, 0, 90, 60], [9, 6, 18, 12]])
    scaled = scale_boxes(boxes, (60, 90), (683, 1024))
    torch.testing.assert_close(scaled[0], torch.tensor([0.0, 0, 1024, 683]))
    torch.testing.assert_close(scaled[1], torch.tensor([102.4, 68.3, 204.8, 136.6]))
