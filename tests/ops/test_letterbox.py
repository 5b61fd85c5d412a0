from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.models.llava_next.modeling_llava_next import unpad_image

from flmm_detseg.ops.letterbox import (
    best_resolution,
    centre_padding,
    fit_inside,
    fit_longest_side,
    fit_shortest_side,
    round_longest_side,
    unpadded_grid,
)

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
SIZES = [
    (h, w)
    for h in (1, 37, 333, 336, 480, 499, 640, 671, 1500)
    for w in (1, 41, 336, 427, 500, 640, 672, 1999)
]


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((60, 90), (46, 70)),
        ((123, 77), (70, 43)),
        ((64, 64), (70, 70)),
        ((45, 140), (22, 70)),
        ((1, 900), (1, 70)),
    ],
)
def test_fit_longest_side_floors_and_keeps_a_pixel(image_size, expected):
    assert fit_longest_side(image_size, 70) == expected


@pytest.mark.case("data/15_elongated_picture_crashes_the_refiner")
@pytest.mark.parametrize("image_size", [(1, 1), (1, 400), (3000, 4), (2, 5000), (1, 10**6)])
def test_no_processor_rounds_a_side_to_nothing(image_size):
    for side in (64, 336, 1024):
        assert min(fit_longest_side(image_size, side)) >= 1
        assert max(fit_longest_side(image_size, side)) == side
        assert min(round_longest_side(image_size, side)) >= 1
        assert max(round_longest_side(image_size, side)) == side
        assert min(fit_inside(image_size, (side, 2 * side))) >= 1


def test_odd_padding_goes_to_the_end():
    assert centre_padding((43, 70), (70, 70)) == (13, 0)


@pytest.mark.parametrize("image_size", SIZES)
def test_canvas_and_sizes_equal_transformers(image_size):
    canvas = best_resolution(image_size, PINPOINTS)
    assert canvas == select_best_resolution(image_size, PINPOINTS)
    picture = torch.zeros(3, *image_size).numpy()
    assert fit_inside(image_size, canvas) == get_patch_output_size(picture, canvas, "channels_first")
    grid = (canvas[0] // 14, canvas[1] // 14)
    assert unpadded_grid(image_size, grid) == tuple(unpad_image(torch.zeros(1, *grid), image_size).shape[1:])


@pytest.mark.parametrize("image_size", [(60, 90), (91, 60), (56, 56), (30, 47), (1, 9), (57, 1000)])
def test_fit_shortest_side_equals_transformers(image_size):
    image = np.zeros((*image_size, 3))
    expected = get_resize_output_image_size(
        image, 56, default_to_square=False, input_data_format="channels_last"
    )
    assert fit_shortest_side(image_size, 56) == expected
