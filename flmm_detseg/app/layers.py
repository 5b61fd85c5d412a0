"""Pictures that the page puts over one another: the photo, and transparent layers of masks and attention."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from flmm_detseg.visualization import canvas

# Longer side of a layer; the browser scales it to the picture.
_SIDE, _HEAT_SIDE = 1024, 256
_FILL = 115


def picture_file(pixels: np.ndarray) -> tuple[bytes, str]:
    """A picture as the page shows it.

    Args:
        pixels: RGB uint8 ``[H, W, 3]``.

    Returns:
        The file and its media type: PNG where the picture is small, so that its pixels are its own, JPEG otherwise.
    """
    size = canvas.readable_size(pixels.shape[:2], min_side=1, max_side=_SIDE)
    picture, file = Image.fromarray(canvas.resize_image(pixels, size)), io.BytesIO()
    if max(pixels.shape[:2]) <= 512:
        picture.save(file, "PNG")
        return file.getvalue(), "image/png"
    picture.save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"


def png(picture: np.ndarray) -> bytes:
    """A picture as PNG.

    Args:
        picture: uint8 ``[H, W, 3]`` or with alpha ``[H, W, 4]``.

    Returns:
        The file.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def mask_layer(mask: np.ndarray, colour: canvas.RGB, *, fill: bool) -> bytes:
    """A mask in its colour with a light and a coloured border, see-through elsewhere.

    Args:
        mask: bool ``[H, W]``.
        colour: Of the phrase.
        fill: Tint the inside too. A tint changes the colours that a phrase may be about; the border alone does not.

    Returns:
        PNG with alpha.
    """
    shown = canvas.resize_mask(mask, canvas.readable_size(mask.shape, min_side=448, max_side=_SIDE))
    width = max(2, max(shown.shape) // 220)
    # 0: see-through, 1: inside, 2: border, 3: the light line around it.
    values = np.zeros(shown.shape, dtype=np.uint8)
    values[shown] = 1 if fill else 0
    around = shown
    for _ in range(max(1, width // 2)):
        around = canvas.grow(around)
    values[around & ~shown] = 3
    values[canvas.outline(shown, width)] = 2
    return _palette_png(values, [(0, 0, 0, 0), (*colour, _FILL), (*colour, 255), (255, 255, 255, 220)])


def box_layer(
    box_xyxy: tuple[float, float, float, float], size: tuple[int, int], colour: canvas.RGB
) -> bytes:
    """A box where there is no mask.

    Args:
        box_xyxy: In pixels of the picture.
        size: ``(H, W)`` of the picture.
        colour: Of the phrase.

    Returns:
        PNG with alpha.
    """
    inside = np.zeros(size, dtype=bool)
    x0, y0, x1, y1 = (max(0, round(value)) for value in box_xyxy)
    inside[y0:y1, x0:x1] = True
    return mask_layer(inside, colour, fill=False)


def heat_layer(values: np.ndarray) -> bytes:
    """A map of attention, scaled to its own range: bright and dense where it is high.

    Args:
        values: float ``[H, W]``.

    Returns:
        PNG with alpha.
    """
    size = canvas.readable_size(values.shape, min_side=1, max_side=_HEAT_SIDE)
    small = canvas.resize_map(values, size)
    low, high = float(small.min()), float(small.max())
    scaled = (small - low) / max(high - low, 1e-12)
    alpha = (30 + 200 * scaled).astype(np.uint8)
    return png(np.dstack([canvas.heat(scaled), alpha]))


def groups_picture(pixels: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """A frame of a stream with its two groups of patches: the background faded, the object group in its own colours.

    Args:
        pixels: RGB uint8 ``[H, W, 3]``.
        objects: bool ``[H, W]``: pixels of the object group.

    Returns:
        RGB uint8, at a size that can be seen.
    """
    size = canvas.readable_size(pixels.shape[:2], min_side=448, max_side=_SIDE)
    picture = canvas.resize_image(pixels, size).astype(np.float32)
    rows = np.arange(size[0]) * objects.shape[0] // size[0]
    columns = np.arange(size[1]) * objects.shape[1] // size[1]
    shown = objects[rows[:, None], columns[None, :]]
    canvas.blend(picture, ~shown, (255, 255, 255), 0.62)
    canvas.blend(picture, canvas.outline(shown, max(2, max(size) // 220)), canvas.phrase_colour(0), 1.0)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _palette_png(values: np.ndarray, colours: list[tuple[int, int, int, int]]) -> bytes:
    """A picture of a few colours; a tenth of the size of one with four channels."""
    picture = Image.fromarray(values, "P")
    picture.putpalette([part for colour in colours for part in colour[:3]])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes(colour[3] for colour in colours), optimize=False)
    return file.getvalue()
