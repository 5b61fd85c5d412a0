"""Drawing primitives shared by all pictures: colours, text, scaling, layout. Headless, no system font."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]

INK: RGB = (33, 37, 41)
FAINT: RGB = (134, 142, 150)
PAPER: RGB = (255, 255, 255)

# Distinct on photographs and on TinyWorld's plain colours; later phrases get hues by the golden angle.
_PALETTE: tuple[RGB, ...] = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (0, 160, 160),
    (240, 50, 230),
    (170, 110, 40),
    (70, 70, 220),
    (128, 128, 0),
    (220, 90, 130),
    (90, 110, 130),
)


def phrase_colour(index: int) -> RGB:
    """Colour of the phrase with this index; the same in every picture."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb((index * 0.61803398875) % 1.0, 0.75, 0.85)
    return int(red * 255), int(green * 255), int(blue * 255)


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow carries, at ``size`` pixels."""
    return ImageFont.load_default(size=size)


def text_width(text: str, size: int) -> int:
    """Width of one line in pixels."""
    return int(font(size).getlength(text) + 0.999)


def check_image(image: np.ndarray) -> np.ndarray:
    """Returns ``image`` when it is uint8 ``[H, W, 3]``.

    Args:
        image: RGB.

    Returns:
        ``image`` itself.

    Raises:
        ValueError: It is not; names shape and dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an RGB uint8 image [H, W, 3] is needed, got {image.dtype} {list(image.shape)}")
    return image


def readable_size(image_size: tuple[int, int], *, min_side: int, max_side: int) -> tuple[int, int]:
    """Size large enough to see, aspect kept.

    Args:
        image_size: ``(H, W)``.
        min_side: The longer side is enlarged to at least this many pixels.
        max_side: The longer side is reduced to at most this many pixels.

    Returns:
        ``(H, W)``.
    """
    longest = max(image_size)
    scale = min(max(longest, min_side), max_side) / longest
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 ``[H, W, 3]`` to ``size`` ``(H, W)``, bicubic."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def resize_map(values: np.ndarray, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """Resizes a float map ``[h, w]`` to ``size`` ``(H, W)``; bilinear, or nearest when not ``smooth``."""
    mode = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize(size[::-1], mode))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a bool mask ``[h, w]`` to ``size`` ``(H, W)`` with a smooth outline."""
    if mask.shape == size:
        return mask.astype(bool)
    return resize_map(mask.astype(np.float32), size) > 0.5


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Inner border of a bool mask, ``width`` pixels wide; the picture's edge counts as border."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        shrunk = inner.copy()
        shrunk[1:] &= inner[:-1]
        shrunk[:-1] &= inner[1:]
        shrunk[:, 1:] &= inner[:, :-1]
        shrunk[:, :-1] &= inner[:, 1:]
        inner = shrunk
    return mask & ~inner[1:-1, 1:-1]


def grow(mask: np.ndarray) -> np.ndarray:
    """The mask and its four neighbours."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def blend(image: np.ndarray, where: np.ndarray, colour: RGB, alpha: float) -> None:
    """Mixes ``colour`` into ``image`` (float32 ``[H, W, 3]``, changed in place) where the mask is true."""
    image[where] = image[where] * (1 - alpha) + np.asarray(colour, dtype=np.float32) * alpha


def heat(values: np.ndarray, *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Float map ``[H, W]`` to colours uint8 ``[H, W, 3]``: inferno between ``low`` and ``high``."""
    from matplotlib import colormaps

    scaled = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    return (colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8)


def hstack(pictures: Sequence[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Pictures side by side on white, aligned at the top."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    out = np.full((height, width, 3), PAPER, dtype=np.uint8)
    left = 0
    for picture in pictures:
        out[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return out


def vstack(pictures: Sequence[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Pictures below each other on white, aligned at the left."""
    turned = [picture.transpose(1, 0, 2) for picture in pictures]
    return np.ascontiguousarray(hstack(turned, gap=gap).transpose(1, 0, 2))


def shorten(text: str, size: int, width: int) -> str:
    """Text cut with an ellipsis so that it fits into ``width`` pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def with_title(picture: np.ndarray, title: str, *, size: int = 14, colour: RGB = INK) -> np.ndarray:
    """The picture under one line of text (shortened to its width)."""
    canvas = Image.new("RGB", (picture.shape[1], size + 8), PAPER)
    line = shorten(title, size, picture.shape[1])
    ImageDraw.Draw(canvas).text((0, 2), line, fill=colour, font=font(size))
    return vstack([np.asarray(canvas), picture], gap=0)


def text_on(colour: RGB) -> RGB:
    """Black or white, whichever has more contrast with ``colour``."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return INK if luminance > 150 else PAPER
