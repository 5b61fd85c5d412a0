import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_detseg.errors import DataError
from flmm_detseg.language import dequantise_boxes, dequantise_points, quantise_boxes, quantise_points

SIZES = st.tuples(st.integers(1, 20000), st.integers(1, 20000))


@settings(deadline=None)
@given(SIZES)
def test_every_integer_survives_the_way_to_pixels_and_back(image_size):
    bins = np.arange(1000)
    points = np.stack([bins, bins[::-1]], axis=-1)
    assert np.array_equal(quantise_points(dequantise_points(points, image_size), image_size), points)


@settings(deadline=None)
@given(SIZES, st.floats(0, 1), st.floats(0, 1))
def test_a_point_moves_by_at_most_half_a_step(image_size, share_x, share_y):
    height, width = image_size
    point = np.array([share_x * width, share_y * height])
    moved = dequantise_points(quantise_points(point, image_size), image_size) - point
    assert (np.abs(moved) <= np.array([width, height]) / 1998 * (1 + 1e-9)).all()


def test_x_goes_with_the_width_and_both_edges_are_exact():
    boxes = quantise_boxes(np.array([[0, 0, 640, 480], [320, 120, 640, 480]]), (480, 640))
    assert boxes.tolist() == [
        [0, 0, 999, 999],
        [500, 250, 999, 999],
    ]  # halves up: 499.5 -> 500, 249.75 -> 250
    assert dequantise_boxes(boxes[:1], (480, 640)).tolist() == [[0, 0, 640, 480]]


def test_outside_is_clamped_and_corners_are_ordered():
    assert quantise_boxes(np.array([50.0, 120, -3, 10]), (100, 100)).tolist() == [0, 100, 500, 999]


def test_no_boxes():
    assert quantise_boxes(np.zeros((0, 4)), (10, 10)).shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "image_size", "message"),
    [
        ([[0, 0, np.nan, 1]], (10, 10), "NaN"),
        ([[0, 0, 1]], (10, 10), r"\[\.\.\., 4\]"),
        ([[0, 0, 1, 1]], (0, 10), "positive"),
    ],
)
def test_unusable_coordinates_are_refused(boxes, image_size, message):
    with pytest.raises(DataError, match=message):
        quantise_boxes(np.array(boxes), image_size)
