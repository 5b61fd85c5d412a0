"""What a user drew on the picture: points, a box, strokes of a brush."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import number, shown

Point = tuple[float, float]

_MOST_POINTS, _MOST_STROKE_POINTS = 64, 4096


@dataclass(frozen=True)
class Marks:
    """In pixels of the picture, x before y.

    Attributes:
        points: Where the user clicked.
        labels: Of each point, whether it belongs to the thing.
        box: ``(x0, y0, x1, y1)``; None without one.
        strokes: Lines of the brush, each with the points that it went through.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None
    strokes: tuple[tuple[Point, ...], ...] = ()

    @classmethod
    def of(cls, data: object, size: tuple[int, int]) -> Marks:
        """Reads what the page sent.

        Args:
            data: ``points`` (``[x, y, label]``), ``box`` (``[x0, y0, x1, y1]`` or None) and ``strokes`` (lists of
                ``[x, y]``), each of them optional; places are cut to the picture.
            size: ``(H, W)`` of the picture.

        Returns:
            The marks.

        Raises:
            DataError: It is nothing of this kind, there are too many points, or nothing was drawn.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"marks are points, a box and strokes, not {shown(data)}")
        points = [_numbers(entry, 3, "point") for entry in _list(data.get("points"), "points", _MOST_POINTS)]
        strokes = [
            tuple(
                _inside(_numbers(place, 2, "stroke"), size)
                for place in _list(stroke, "stroke", _MOST_STROKE_POINTS)
            )
            for stroke in _list(data.get("strokes"), "strokes", _MOST_POINTS)
        ]
        box = data.get("box")
        marks = cls(
            tuple(_inside(entry, size) for entry in points),
            tuple(entry[2] > 0 for entry in points),
            None if box is None else _box(_numbers(box, 4, "box"), size),
            tuple(stroke for stroke in strokes if stroke),
        )
        if marks == cls():
            raise DataError("nothing is drawn; click a point, draw a box, or a line over the thing")
        return marks

    def scribble(self, size: tuple[int, int]) -> np.ndarray | None:
        """The strokes as pixels.

        Args:
            size: ``(H, W)`` of the picture.

        Returns:
            bool ``[H, W]``; None where the brush was not used.
        """
        if not self.strokes:
            return None
        picture = Image.new("1", (size[1], size[0]))
        pen = ImageDraw.Draw(picture)
        for stroke in self.strokes:
            pen.line([*stroke, stroke[-1]], fill=1, width=1)
            pen.point([stroke[0]], fill=1)
        return np.asarray(picture, dtype=bool)

    def __str__(self) -> str:
        """In words, for the conversation."""
        inside, outside = sum(self.labels), len(self.labels) - sum(self.labels)
        counted = ((inside, "inside"), (outside, "outside"))
        parts = [f"{count} point{'s' * (count > 1)} {place}" for count, place in counted if count]
        if self.box is not None:
            parts.append("a box")
        if self.strokes:
            parts.append(f"{len(self.strokes)} stroke{'s' * (len(self.strokes) > 1)}")
        return ", ".join(parts)


def _list(value: object, what: str, most: int) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"`{what}` is {shown(value)}, not a list")
    if len(value) > most:
        raise DataError(f"`{what}` has {len(value)} entries; at most {most} are read")
    return value


def _numbers(value: object, count: int, what: str) -> tuple[float, ...]:
    entries = _list(value, what, count)
    if len(entries) != count:
        raise DataError(f"a {what} is {count} numbers, not {shown(value)}")
    return tuple(number(entry, what) for entry in entries)


def _inside(place: Sequence[float], size: tuple[int, int]) -> Point:
    return min(max(place[0], 0.0), size[1] - 1.0), min(max(place[1], 0.0), size[0] - 1.0)


def _box(corners: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    x0, x1 = sorted(min(max(value, 0.0), float(size[1])) for value in corners[::2])
    y0, y1 = sorted(min(max(value, 0.0), float(size[0])) for value in corners[1::2])
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise DataError("the box has no pixel in it; draw it from corner to corner")
    return x0, y0, x1, y1
