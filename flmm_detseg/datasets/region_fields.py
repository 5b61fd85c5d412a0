"""Regions as annotation files hold them."""

from __future__ import annotations

from typing import Any

from flmm_detseg.errors import DataError
from flmm_detseg.structures import Region
from flmm_detseg.utils.values import FieldError, shown


def read_regions(value: Any) -> tuple[Region, ...]:
    """Points and boxes of a field ``regions``; whether they lie in the image is checked where it is read.

    Args:
        value: None, or ``[[x, y] | [x0, y0, x1, y1], ...]`` in pixels of the image.

    Returns:
        The regions, of the sample's first image.

    Raises:
        FieldError: It is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FieldError(
            f"`regions` is {shown(value)}, not a list of points [x, y] and boxes [x0, y0, x1, y1]"
        )
    try:
        return tuple(Region.of(region) for region in value)
    except DataError as error:
        raise FieldError(f"`regions`: {error}") from error
