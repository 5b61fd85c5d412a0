from __future__ import annotations

import pytest
import torch
from dense_parts import GRIDS, PADDED, PATCH, SQUEEZED, TALL

from flmm_detseg.heads.frame import Frame


def test_where_images_lie():
    assert Frame.of(PADDED, PATCH).window_xyxy == (0, 14, 56, 42)
    assert Frame.of(TALL, PATCH).window_xyxy == (14, 0, 42, 56)
    assert Frame.of(SQUEEZED, PATCH).window_xyxy == (0, 0, 56, 56)


@pytest.mark.parametrize("grid", GRIDS)
def test_boxes_there_and_back(grid):
    frame = Frame.of(grid, PATCH)
    height, width = grid.image_size
    boxes = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values.flatten(1)
    boxes = boxes * torch.tensor([width, height, width, height])
    into = frame.boxes_into(boxes)
    x0, y0, x1, y1 = frame.window_xyxy
    assert (into[:, 0] >= x0).all()
    assert (into[:, 3] <= y1 + 1e-4).all()
    torch.testing.assert_close(frame.boxes_out_of(into), boxes, rtol=1e-5, atol=1e-4)
    whole = torch.tensor([[0.0, 0, width, height]])
    torch.testing.assert_close(frame.boxes_into(whole), torch.tensor([[x0, y0, x1, y1]]))


def test_boxes_in_the_padding_are_cut_to_nothing():
    out = Frame.of(PADDED, PATCH).boxes_out_of(torch.tensor([[2.0, 0, 20, 12], [0, 0, 28, 28]]))
    assert out[0, 1] == out[0, 3] == 0
    torch.testing.assert_close(out[1], torch.tensor([0.0, 0, 30, 15]))


def test_labels_lie_below_the_centres_of_cells():
    frame = Frame.of(PADDED, PATCH)
    labels = torch.arange(30)[:, None].expand(30, 60).to(torch.uint8)
    into = frame.labels_into(labels, (8, 8), 255)
    assert into.dtype == torch.uint8
    # Cells of 7 px; the image has rows 14..42: centres 17.5, 24.5, ... over 30 pixels in 28.
    expected = [255, 255, 3, 11, 18, 26, 255, 255]
    assert into[:, 0].tolist() == expected
    assert into[:, 7].tolist() == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_crop_undoes_the_placing(grid):
    frame = Frame.of(grid, PATCH)
    labels = torch.randint(0, 9, grid.image_size, generator=torch.Generator().manual_seed(0))
    placed = frame.labels_into(labels, frame.size, -1)
    window = frame.crop(placed)
    assert (window >= 0).all()
    assert int((placed >= 0).sum()) == window.numel()
