"""What a picture looks like, in numbers: colours, edges at several scales, local patterns. No model, no training.

The numbers of one kind of pictures (photos, drawings, screens) lie together; how far a picture is from those of a
training is measured by :mod:`flmm_detseg.models.domain`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# Every picture is looked at in this size, so that its own size says nothing.
SIDE = 128
_LEVELS = 4
_TINY = 1e-4
# Neighbours of a pixel, round about.
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
# Grey levels (0 to 1) by which neighbours have to differ.
_STEP = 0.02
_EDGES = (0.0, 0.004, 0.01, 0.02, 0.04, 0.08, 0.16, 10.0)
_DIRECTIONS, _HUES, _SATURATIONS, _VALUES, _COLOURS = 8, 8, 4, 8, 8


def picture_statistics(image: np.ndarray) -> np.ndarray:
    """Statistics of a picture's colours, edges and local patterns at one size, whatever its own.

    Args:
        image: RGB uint8 ``[H, W, 3]``.

    Returns:
        float64 ``[157]``: moments and quantiles of colours, band energies of a pyramid, histograms of edges, their
        directions, hue, saturation, brightness and of local patterns (as roots of shares, whose distances mean the
        same for rare and for frequent values), and how alike the colour channels are.
    """
    small = Image.fromarray(np.ascontiguousarray(image)).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    pixels = np.asarray(small, dtype=np.float64) / 255
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    parts = [_colours(pixels), _bands(pixels), _edges(grey), _hues(small)]
    parts += [_patterns(grey, radius) for radius in (1, 3)]
    parts += [_roughness(grey, side) for side in (16, 4)]
    parts += [_alike(np.moveaxis(pixels, -1, 0).reshape(3, -1)), _alike(_slopes(pixels))]
    return np.concatenate(parts)


def _opponent(pixels: np.ndarray) -> np.ndarray:
    """Brightness, red against green, yellow against blue: ``[3, SIDE, SIDE]``."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return np.stack([pixels.mean(-1), red - green, (red + green) / 2 - blue])


def _colours(pixels: np.ndarray) -> np.ndarray:
    opponent = _opponent(pixels).reshape(3, -1)
    value, saturation = pixels.max(-1), np.ptp(pixels, axis=-1)
    cells = np.minimum((pixels * _COLOURS).astype(int), _COLOURS - 1) @ np.array([_COLOURS**2, _COLOURS, 1])
    shares = np.bincount(cells.ravel()) / cells.size
    shares = shares[shares > 0]
    return np.concatenate(
        [
            opponent.mean(1),
            opponent.std(1),
            np.quantile(value, (0.02, 0.25, 0.75, 0.98)),
            np.quantile(saturation, (0.05, 0.5, 0.95)),
            [-(shares * np.log(shares)).sum()],
        ]
    )


def _bands(pixels: np.ndarray) -> np.ndarray:
    """Per level of a pyramid what its next level loses: mean size; of brightness, how uneven that is too."""
    found = []
    for channel, plane in enumerate(_opponent(pixels)):
        for _ in range(_LEVELS if channel == 0 else _LEVELS - 1):
            lower = _halved(plane)
            band = np.abs(plane - _doubled(lower))
            mean = band.mean() + _TINY
            found.append(np.log(mean))
            if channel == 0:
                found.append(np.log((np.sqrt((band**2).mean()) + _TINY) / mean))
                found.append(np.log(np.median(band) + _TINY))
            plane = lower
    return np.array(found)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Half as large, after a blur by a binomial of five."""
    for _ in range(2):  # both axes, one after the other
        rows = np.pad(plane, ((2, 2), (0, 0)), mode="reflect")
        ends, sides = rows[:-4:2] + rows[4::2], rows[1:-3:2] + rows[3:-1:2]
        plane = ((ends + 4 * sides + 6 * rows[2:-2:2]) / 16).T
    return plane


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Twice as large by linear interpolation."""
    for _ in range(2):
        following = np.concatenate([plane[1:], plane[-1:]])
        plane = np.stack([plane, (plane + following) / 2], 1).reshape(2 * len(plane), -1).T
    return plane


def _edges(grey: np.ndarray) -> np.ndarray:
    """Histograms of the size of Sobel's gradient, and of its direction by size."""
    padded = np.pad(grey, 1, mode="edge")
    rows, columns = padded[2:] - padded[:-2], padded[:, 2:] - padded[:, :-2]
    down = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 8
    right = (columns[:-2] + 2 * columns[1:-1] + columns[2:]) / 8
    size = np.hypot(down, right)
    direction = np.arctan2(down, right) % np.pi
    weighted, _ = np.histogram(direction, bins=_DIRECTIONS, range=(0, np.pi), weights=size)
    sizes, _ = np.histogram(size, bins=_EDGES)
    return np.concatenate([np.sqrt(sizes / size.size), np.sqrt(weighted / (weighted.sum() + _TINY))])


def _hues(small: Image.Image) -> np.ndarray:
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("HSV"), dtype=int), -1, 0)
    cells = hue * _HUES // 256 * _SATURATIONS + saturation * _SATURATIONS // 256
    colours = np.bincount(cells.ravel(), minlength=_HUES * _SATURATIONS)
    values = np.bincount((value * _VALUES // 256).ravel(), minlength=_VALUES)
    shares: np.ndarray = np.sqrt(np.concatenate([colours, values]) / hue.size)
    return shares


def _patterns(grey: np.ndarray, radius: int) -> np.ndarray:
    """How many of a pixel's eight neighbours are lighter, darker, and how often that changes on the way round."""
    inner = slice(radius, SIDE - radius)
    centre = grey[inner, inner]
    around = np.stack(
        [
            grey[radius * (1 + dy) : SIDE - radius * (1 - dy), radius * (1 + dx) : SIDE - radius * (1 - dx)]
            for dy, dx in _AROUND
        ]
    )
    lighter, darker = around - centre > _STEP, centre - around > _STEP
    signs = lighter.astype(int) - darker
    changes = signs != np.roll(signs, 1, axis=0)
    counts = [np.bincount(flags.sum(0).ravel(), minlength=9) for flags in (lighter, darker, changes)]
    shares: np.ndarray = np.sqrt(np.concatenate(counts) / centre.size)
    return shares


def _roughness(grey: np.ndarray, side: int) -> np.ndarray:
    """Quantiles of the deviation within squares of a side."""
    squares = grey.reshape(SIDE // side, side, SIDE // side, side).std(axis=(1, 3))
    sizes: np.ndarray = np.log(np.quantile(squares, (0.05, 0.25, 0.5, 0.75, 0.95)) + 0.003)
    return sizes


def _slopes(pixels: np.ndarray) -> np.ndarray:
    """Differences to the pixel below and to the right, by channel: ``[3, N]``."""
    steps = [np.diff(pixels, axis=axis).reshape(-1, 3) for axis in (0, 1)]
    return np.concatenate(steps).T


def _alike(channels: np.ndarray) -> np.ndarray:
    """Correlations of three channels; 0 where one of them is constant."""
    centred = channels - channels.mean(1, keepdims=True)
    products = centred @ centred.T / channels.shape[1]
    scale = np.sqrt(np.diag(products)) + 1e-3
    correlations: np.ndarray = products / np.outer(scale, scale)
    return correlations[[0, 0, 1], [1, 2, 2]]
