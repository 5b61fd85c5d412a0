"""The nine places of an image: thirds, their words, and the words that models use for them."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_detseg.language import polygons_to_mask
from flmm_detseg.language.image_places import PLACES, place_at_end, place_of

OUTLINES = {words: outline for outline, words in PLACES.items()}


def test_the_nine_places_cut_the_image_into_thirds():
    size = (90, 120)
    count = sum(polygons_to_mask((outline,), size).astype(int) for outline in PLACES)
    assert (count == 1).all()
    assert len(PLACES) == len(OUTLINES) == 9
    assert polygons_to_mask((OUTLINES["at the top right"],), size)[:30, 80:].all()
    assert polygons_to_mask((OUTLINES["at the left"],), size)[30:60, :40].all()
    assert polygons_to_mask((OUTLINES["in the centre"],), size)[30:60, 40:80].all()


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ((0, 1), (0, 1), "at the top left"),
        ((29, 31), (59, 61), "in the centre"),
        ((28, 31), (59, 61), "at the top"),
        ((59, 60), (119, 120), "at the right"),
        ((89, 90), (0, 120), "at the bottom"),
        ((0, 90), (0, 120), "in the centre"),
        ((0, 90), (0, 2), "at the left"),
        ((60, 90), (80, 120), "at the bottom right"),
    ],
)
def test_a_mask_is_where_the_middle_of_its_box_is(rows, columns, words):
    mask = np.zeros((90, 120), dtype=bool)
    mask[rows[0], columns[0]] = mask[rows[1] - 1, columns[1] - 1] = True
    assert PLACES[place_of(mask)] == words
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    assert PLACES[place_of(mask)] == words


@pytest.mark.parametrize(
    ("words", "place", "label"),
    [
        ("the dog at the lower left", "at the bottom left", "the dog"),
        ("dog in the upper right corner", "at the top right", "dog"),
        ("dog on the left side of the image", "at the left", "dog"),
        ("dog at the top-left.", "at the top left", "dog"),
        ("dog At The Right Top", "at the top right", "dog"),
        ("dog in the middle", "in the centre", "dog"),
        ("dog in the bottom center", "at the bottom", "dog"),
        ("dog at the top left", "at the top left", "dog"),
        ("dog at the top in the centre", "in the centre", "dog at the top"),
        ("at the top", "at the top", ""),
        ("dog", None, None),
        ("dog at the left right", None, None),
        ("dog at the top bottom", None, None),
        ("dog at the top of the tree", None, None),
        ("cat the top", None, None),
        ("dog top left", None, None),
    ],
)
def test_words_for_places(words, place, label):
    found = place_at_end(words)
    if place is None:
        assert found is None
        return
    assert PLACES[found.outline] == place
    assert words[: found.start].strip() == label
    assert found.as_written == words.endswith(place)
