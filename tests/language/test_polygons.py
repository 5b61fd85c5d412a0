import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import dequantise_points, mask_to_polygons, polygons_to_mask

SIZE = (120, 160)


def disc(centre_x, centre_y, radius, size=SIZE):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2


def test_rectangles_keep_their_pixel_edges():
    mask = np.zeros((999, 999), dtype=bool)
    mask[100:300, 50:700] = True
    result = mask_to_polygons(mask)
    assert set(result.polygons[0]) == {(50, 100), (700, 100), (700, 300), (50, 300)}
    assert result.iou == 1.0
    assert np.array_equal(polygons_to_mask(result.polygons, (999, 999)), mask)


def test_the_whole_image_is_the_whole_range():
    result = mask_to_polygons(np.ones(SIZE, dtype=bool))
    assert set(result.polygons[0]) == {(0, 0), (999, 0), (999, 999), (0, 999)}
    assert result.iou == 1.0


@pytest.mark.parametrize(("max_points", "iou"), [(4, 0.55), (8, 0.85), (32, 0.95)])
def test_points_are_bounded_and_more_of_them_fit_better(max_points, iou):
    mask = disc(80, 60, 45)
    result = mask_to_polygons(mask, max_points=max_points)
    assert len(result.polygons[0]) <= max_points
    drawn = polygons_to_mask(result.polygons, SIZE)
    assert result.iou == pytest.approx((drawn & mask).sum() / (drawn | mask).sum())
    assert result.iou >= iou


def test_the_largest_parts_stay_and_losses_are_reported():
    mask = disc(40, 40, 30) | disc(120, 60, 20) | disc(100, 110, 5)
    mask &= ~disc(40, 40, 10)
    result = mask_to_polygons(mask, max_parts=2)
    assert len(result.polygons) == 2
    assert result.num_dropped_parts == 1
    assert result.num_filled_holes == 1
    drawn = polygons_to_mask(result.polygons, SIZE)
    assert drawn[40, 40]  # the hole
    assert drawn[60, 120]
    assert not drawn[110, 100]


def test_random_masks_never_break_the_bounds():
    generator = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(generator.integers(1, 60, 2))
        noise = cv2.GaussianBlur(
            generator.random(size).astype(np.float32), (0, 0), float(generator.uniform(0.3, 4))
        )
        mask = noise > np.quantile(noise, generator.uniform(0.1, 0.95))
        result = mask_to_polygons(mask, max_points=12, max_parts=4)
        assert len(result.polygons) <= 4
        for polygon in result.polygons:
            assert 3 <= len(polygon) <= 12
            assert all(type(value) is int and 0 <= value <= 999 for point in polygon for value in point)


def test_thin_and_empty_masks():
    line = np.zeros((100, 100), dtype=bool)
    line[10, 5:80] = True
    assert mask_to_polygons(line).iou == 1.0
    speck = np.zeros((3000, 3000), dtype=bool)
    speck[8, 8] = True  # thinner than a canonical step
    result = mask_to_polygons(speck)
    assert result.polygons == ()
    assert result.num_dropped_parts == 1
    assert result.iou == 0.0
    assert mask_to_polygons(np.zeros((5, 5), dtype=bool)).polygons == ()


def test_drawing_agrees_with_pycocotools():
    generator = np.random.default_rng(1)
    for _ in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 9))
        radii = generator.uniform(200, 480, 9)
        points = np.stack([500 + radii * np.cos(angles), 500 + radii * np.sin(angles)], -1).astype(int)
        polygon = tuple((int(x), int(y)) for x, y in points)
        ours = polygons_to_mask((polygon,), SIZE)
        flat = dequantise_points(points, SIZE).ravel().tolist()
        theirs = coco_mask.decode(coco_mask.frPyObjects([flat], *SIZE))[..., 0].astype(bool)
        assert (ours & theirs).sum() / (
            ours | theirs
        ).sum() > 0.97  # pycocotools rounds outlines to a fifth of a pixel


def test_unusable_arguments_are_refused():
    with pytest.raises(ConfigError, match="max_points"):
        mask_to_polygons(np.ones((4, 4), dtype=bool), max_points=3)
    with pytest.raises(DataError, match=r"\[H, W\]"):
        mask_to_polygons(np.ones((1, 4, 4), dtype=bool))
