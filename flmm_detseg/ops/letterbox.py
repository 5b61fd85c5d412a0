"""Sizes of resized and padded images, all ``(H, W)``: LLaVA's padded square, LLaVA-NeXT's tiles, SAM's square,
CLIP's crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def whole_pixels(length: float, rounding: Callable[[float], int]) -> int:
    """A length of a resized image: rounded as its model does, at least 1 pixel.

    Every processor rounds here: an image that is very long and thin must not lose its short side.
    """
    return max(1, int(rounding(length)))


def fit_longest_side(image_size: tuple[int, int], side: int) -> tuple[int, int]:
    """Size of an image scaled to ``side`` on its longest side; the other is floored, at least 1 pixel."""
    height, width = image_size
    longest = max(height, width)
    return whole_pixels(height * side // longest, int), whole_pixels(width * side // longest, int)


def fit_shortest_side(image_size: tuple[int, int], side: int) -> tuple[int, int]:
    """Size of an image scaled to ``side`` on its shortest side; the other is floored (CLIP's rule)."""
    shortest = min(image_size)
    height, width = (side if length == shortest else int(side * length / shortest) for length in image_size)
    return height, width


def round_longest_side(image_size: tuple[int, int], side: int) -> tuple[int, int]:
    """Size of an image scaled to ``side`` on its longest side; the other is rounded half up, at least 1 pixel (SAM)."""
    scale = side * 1.0 / max(image_size)
    height, width = (whole_pixels(length * scale + 0.5, math.floor) for length in image_size)
    return height, width


def fit_inside(image_size: tuple[int, int], target_size: tuple[int, int]) -> tuple[int, int]:
    """Size of an image scaled to fit into ``target_size``; the shorter side is ceiled (LLaVA-NeXT's rule)."""
    scale_h, scale_w = target_size[0] / image_size[0], target_size[1] / image_size[1]
    if scale_w < scale_h:
        return min(whole_pixels(image_size[0] * scale_w, math.ceil), target_size[0]), target_size[1]
    return target_size[0], min(whole_pixels(image_size[1] * scale_h, math.ceil), target_size[1])


def centre_padding(inner_size: tuple[int, int], outer_size: tuple[int, int]) -> tuple[int, int]:
    """``(top, left)`` of an image centred in a larger frame; an odd pixel goes to the bottom or right."""
    return (outer_size[0] - inner_size[0]) // 2, (outer_size[1] - inner_size[1]) // 2


def best_resolution(image_size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Chooses LLaVA-NeXT's canvas: most image pixels kept, then least canvas wasted, then first in the list.

    Args:
        image_size: Original image.
        pinpoints: Allowed canvases.

    Returns:
        One of ``pinpoints``.
    """
    height, width = image_size

    def score(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(((int(h), int(w)) for h, w in pinpoints), key=score)


def unpadded_grid(image_size: tuple[int, int], grid_size: tuple[int, int]) -> tuple[int, int]:
    """Token rows and columns of a padded canvas that LLaVA-NeXT keeps: the image without its padding.

    The same number is cut on both sides, so an odd padding leaves one row or column of it (transformers'
    ``unpad_image``).

    Args:
        image_size: Original image.
        grid_size: Rows and columns of the whole canvas.

    Returns:
        Rows and columns that are left.
    """
    height, width = image_size
    rows, cols = grid_size
    if width / height > cols / rows:
        kept = int(round(height * (cols / width), 7))
        return rows - 2 * ((rows - kept) // 2), cols
    kept = int(round(width * (rows / height), 7))
    return rows, cols - 2 * ((cols - kept) // 2)
