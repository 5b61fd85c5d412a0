"""What the page sends of a drawing."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_detseg.app.marks import Marks
from flmm_detseg.errors import DataError

SIZE = (40, 60)


def test_marks_are_read_in_pixels_and_cut_to_the_picture():
    marks = Marks.of(
        {"points": [[3, 4, 1], [99, -5, 0]], "box": [50, 30, 10, 90], "strokes": [[[1, 2], [5, 2]], []]}, SIZE
    )
    assert marks.points == ((3.0, 4.0), (59.0, 0.0))
    assert marks.labels == (True, False)
    assert marks.box == (10.0, 30.0, 50.0, 40.0)
    assert marks.strokes == (((1.0, 2.0), (5.0, 2.0)),)
    assert str(marks) == "1 point inside, 1 point outside, a box, 1 stroke"


def test_a_scribble_is_the_pixels_under_the_line():
    scribble = Marks.of({"strokes": [[[2, 3], [6, 3]], [[10, 10]]]}, SIZE).scribble(SIZE)
    wanted = np.zeros(SIZE, dtype=bool)
    wanted[3, 2:7] = wanted[10, 10] = True
    np.testing.assert_array_equal(scribble, wanted)
    assert Marks.of({"box": [0, 0, 5, 5]}, SIZE).scribble(SIZE) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "nothing is drawn"),
        ({"strokes": [[]]}, "nothing is drawn"),
        (None, "marks are points"),
        ([1], "marks are points"),
        ({"points": [[1, 2]]}, "a point is 3 numbers"),
        ({"points": [["a", 2, 1]]}, "not a finite number"),
        ({"points": [[float("nan"), 2, 1]]}, "not a finite number"),
        ({"points": [[1, 2, 1]] * 65}, "at most 64"),
        ({"points": "12"}, "not a list"),
        ({"box": [1, 2, 3]}, "a box is 4 numbers"),
        ({"box": [5, 5, 5, 9]}, "no pixel in it"),
        ({"strokes": [[[1, 2, 3]]]}, "at most 2|stroke is 2"),
        ({"strokes": [[[0, 0]] * 5000]}, "at most 4096"),
    ],
)
def test_anything_else_is_refused(data, words):
    with pytest.raises(DataError, match=words):
        Marks.of(data, SIZE)
