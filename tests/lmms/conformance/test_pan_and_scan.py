"""Gemma 3's pan and scan: which images are cropped, and where the crops' tokens lie."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_families import build

from flmm_detseg.lmms import all_families
from flmm_detseg.structures import ImageInputs

# Tiny settings: crops of at least 32 pixels, at most 4, for images of sides 1.2 to 1 and more.
CROPS = {
    (120, 120): None,
    (120, 140): None,
    (100, 120): (1, 2),
    (90, 200): (1, 2),
    (200, 90): (2, 1),
    (40, 200): (1, 4),
    (330, 33): (4, 1),
    (31, 300): None,
}


@pytest.fixture(scope="module")
def lmm():
    return build("gemma3_pan")


def prepared(lmm, size: tuple[int, int]) -> ImageInputs:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return lmm.processor.tokenise(lmm.processor.prompt("a"), [image]).images[0]


@pytest.mark.parametrize("size", CROPS)
def test_crops_are_a_second_level(lmm, size: tuple[int, int]) -> None:
    image, crops = prepared(lmm, size), CROPS[size]
    maps = [(level.rows, level.cols) for level in image.grid.levels]
    assert maps == ([(4, 4)] if crops is None else [(4, 4), (4 * crops[0], 4 * crops[1])])
    assert len(image.pixel_values) == (1 if crops is None else 1 + crops[0] * crops[1])
    # Two levels of channels whatever the image is.
    assert len(image.grid.stacked) == lmm.facts.num_levels == 2
    assert image.grid.stacked[0] == 0


def test_images_of_any_size_get_the_crops_that_the_processor_makes(lmm) -> None:
    for height, width in np.random.default_rng(1).integers(24, 400, (60, 2)):
        image = prepared(lmm, (int(height), int(width)))  # raises where our rule and the processor's differ
        assert len(image.pixel_values) * 16 == image.grid.num_tokens


def test_the_plain_family_stays_the_one_that_is_found_by_a_models_type() -> None:
    assert all_families.adapters()["gemma3"].__name__ == "Gemma3Adapter"
