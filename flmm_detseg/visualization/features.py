"""Feature maps as colours, and shares of layers as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.visualization import canvas

# Of the values of a component, these shares at both ends are cut off: a few outlier cells would leave no contrast.
_CUT = 0.01


def feature_colours(maps: np.ndarray) -> np.ndarray:
    """Channels as three colours: the maps' first three principal components over their own cells.

    Each component is stretched to its own range (without the outermost hundredth of the cells), and has the sign that
    makes its largest weight positive, so that the same maps have the same colours. Colours of two pictures cannot be
    compared: each has components of its own.

    Args:
        maps: Float ``[C, h, w]``.

    Returns:
        uint8 ``[h, w, 3]``; a component that the maps do not have (fewer channels, the same value everywhere) is grey.
    """
    channels, height, width = maps.shape
    cells = maps.reshape(channels, -1).T.astype(np.float64)
    cells = cells - cells.mean(axis=0)
    colours = np.full((height * width, 3), 128, dtype=np.uint8)
    # Of the smaller of the two products: channels are many, cells few.
    _, sizes, weights = np.linalg.svd(cells, full_matrices=False)
    for index in range(min(3, len(sizes))):
        if sizes[index] <= 1e-9 * max(float(sizes[0]), 1e-12) or sizes[index] < 1e-12:
            break
        weight = weights[index]
        values = cells @ (weight * np.sign(weight[np.abs(weight).argmax()]))
        low, high = np.quantile(values, [_CUT, 1 - _CUT])
        scaled = (values - low) / max(high - low, 1e-12)
        colours[:, index] = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return colours.reshape(height, width, 3)


def draw_features(maps: np.ndarray, image_size: tuple[int, int], *, cell: int = 256) -> np.ndarray:
    """:func:`feature_colours` of maps over an image, enlarged cell by cell to the image's aspect.

    Args:
        maps: Float ``[C, h, w]``, cut to the image.
        image_size: ``(H, W)``.
        cell: Longer side of the picture, pixels.

    Returns:
        RGB uint8.
    """
    size = canvas.readable_size(image_size, min_side=cell, max_side=cell)
    picture = Image.fromarray(feature_colours(maps))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST))


def draw_shares(shares: Mapping[str, Sequence[float]], layers: Sequence[str]) -> np.ndarray:
    """Bars of what each row takes of each layer.

    Args:
        shares: By row (a task), a number in [0, 1] a layer.
        layers: Names of the layers.

    Returns:
        RGB uint8 picture: a row of bars for each entry, its numbers above the bars.

    Raises:
        ValueError: A row has not as many numbers as there are layers.
    """
    if any(len(row) != len(layers) for row in shares.values()):
        raise ValueError(f"{len(layers)} layers, but rows of {[len(row) for row in shares.values()]} numbers")
    left = 16 + max([canvas.text_width(name, 14) for name in shares], default=0)
    step = max(56, *(canvas.text_width(name, 12) + 12 for name in layers))
    height, bar = 92, 56
    picture = Image.new("RGB", (left + step * len(layers), 24 + height * len(shares)), canvas.PAPER)
    pen = ImageDraw.Draw(picture)
    for column, name in enumerate(layers):
        pen.text((left + column * step, 4), name, fill=canvas.FAINT, font=canvas.font(12))
    for row, (name, numbers) in enumerate(shares.items()):
        bottom = 24 + height * (row + 1) - 12
        pen.text((4, bottom - 18), name, fill=canvas.INK, font=canvas.font(14))
        for column, share in enumerate(numbers):
            x = left + column * step
            top = bottom - round(bar * min(max(share, 0.0), 1.0))
            pen.rectangle((x, bottom - bar, x + step - 14, bottom), outline=(222, 226, 230))
            if top < bottom:
                pen.rectangle((x, top, x + step - 14, bottom), fill=canvas.phrase_colour(1))
            pen.text((x, bottom - bar - 16), f"{share:.3f}", fill=canvas.INK, font=canvas.font(11))
    return np.asarray(picture)
