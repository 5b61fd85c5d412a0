"""Pixels of TinyWorld: textured stuff, and objects painted with antialiasing."""

from __future__ import annotations

import math
import random
from functools import lru_cache

import cv2
import numpy as np

from flmm_detseg.datasets.tinyworld.shapes import draw_shape

RGB = tuple[int, int, int]
# Saturated, so that every colour differs clearly from the muted stuff.
COLOURS: dict[str, RGB] = {
    "red": (222, 24, 24),
    "orange": (255, 136, 0),
    "yellow": (252, 232, 20),
    "green": (10, 160, 40),
    "blue": (28, 60, 228),
    "purple": (128, 24, 168),
    "pink": (255, 128, 200),
    "black": (26, 26, 30),
}
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
STUFF: tuple[str, ...] = ("sky", "grass", "water", "sand", "wall")
SUPERSAMPLING = 4
_LIGHT_ACCENT, _DARK_ACCENT = (255, 255, 255), (50, 40, 40)
_ACCENTS = {
    name: _DARK_ACCENT if name in ("yellow", "orange", "pink") else _LIGHT_ACCENT for name in COLOURS
}


@lru_cache(maxsize=4)
def stuff_tiles(side: int) -> dict[str, np.ndarray]:
    """One ``[side, side, 3]`` uint8 picture per stuff; scenes cut their regions out of it. Always the same."""
    rng = np.random.RandomState(20_240)  # the legacy generator: its stream is frozen across numpy versions
    yy, xx = np.mgrid[:side, :side]
    noise = rng.randint(-100, 101, (side, side)).astype(np.float64) / 100
    soft = cv2.blur(noise, (5, 5)) * 3
    clouds = cv2.blur(noise, (31, 31)) * 22
    blades = np.where((xx + rng.randint(0, 6, (side // 6 + 1, 1)).repeat(6, 0)[:side]) % 4 == 0, -1.0, 0.35)
    waves = np.sin((yy + 2.0 * np.sin(xx / 6.0)) * (2 * math.pi / 7.0))
    joints = (yy % 10 == 0) | ((xx + 9 * (yy // 10 % 2)) % 18 == 0)
    layers = {
        "sky": ((186, 208, 226), 5 * clouds + 1.5 * noise),
        "grass": ((128, 148, 100), 15 * blades + 8 * noise),
        "water": ((96, 142, 158), 13 * waves + 3 * noise),
        "sand": ((212, 197, 160), 15 * np.sign(noise) * (np.abs(noise) > 0.75) + 5 * soft),
        "wall": ((168, 146, 136), np.where(joints, 34.0, 4 * noise)),
    }
    return {
        name: np.clip(np.array(base) + shade[..., None], 0, 255).astype(np.uint8)
        for name, (base, shade) in layers.items()
    }


def paint_stuff(
    rng: random.Random, names: tuple[str, ...], masks: tuple[np.ndarray, ...], image_size: tuple[int, int]
) -> np.ndarray:
    """Paints every region with a random cut of its stuff and a small change of brightness.

    Args:
        rng: Source of the cut and the brightness.
        names: Stuff of every region.
        masks: Their masks, ``[H, W]`` bool, which divide the image.
        image_size: ``(H, W)``.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    height, width = image_size
    tiles = stuff_tiles(2 * max(height, width))
    image = np.zeros((height, width, 3), np.uint8)
    for name, mask in zip(names, masks):
        top, left = rng.randrange(height), rng.randrange(width)
        cut = tiles[name][top : top + height, left : left + width].astype(np.int16) + rng.randint(-12, 12)
        image[mask] = np.clip(cut, 0, 255).astype(np.uint8)[mask]
    return image


def _pattern(texture: str, size: tuple[int, int], period: float, phase: int) -> np.ndarray:
    """Where the accent colour goes, ``[H, W]`` bool in supersampled pixels."""
    if texture == "plain":
        return np.zeros(size, bool)
    yy, xx = np.ogrid[: size[0], : size[1]]
    if texture == "striped":
        return (xx + yy + phase) * 0.7071 % period < 0.42 * period
    row = (yy + phase) // period
    dx = (xx + phase + 0.5 * period * (row % 2)) % period - period / 2
    dy = (yy + phase) % period - period / 2
    return dx * dx + dy * dy < (0.36 * period) ** 2


class Sticker:
    """One object, drawn and downsampled, ready to be put on an image.

    Attributes:
        top: Row of its first line in the image (may be negative).
        left: Column of its first pixel.
        alpha: ``[h, w]`` float32 in 0..1, share of the pixel inside the shape.
        colour: ``[h, w, 3]`` float32, 0..255, colour of that share.
    """

    def __init__(
        self,
        kind: str,
        colour: str,
        texture: str,
        centre_xy: tuple[float, float],
        radius: float,
        angle: float,
        phase: int,
        scale: float,
    ) -> None:
        reach = math.ceil(radius * 1.3) + 1
        self.left, self.top = int(centre_xy[0]) - reach, int(centre_xy[1]) - reach
        side = 2 * reach + 1
        factor = SUPERSAMPLING
        inside = draw_shape(
            kind,
            (side * factor, side * factor),
            ((centre_xy[0] - self.left) * factor, (centre_xy[1] - self.top) * factor),
            radius * factor,
            angle,
        )
        rim = max(1, round(0.8 * scale * factor))
        core = cv2.erode(inside, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0
        shape = inside > 0
        base = np.array(COLOURS[colour], np.float32)
        period = factor * scale * (4.2 if radius < 11 * scale else 6.0)
        pixels = np.where(core[..., None], base, base * np.float32(0.5))
        accent = core & _pattern(texture, inside.shape, period, phase)
        pixels[accent] = _ACCENTS[colour]
        pixels *= shape[..., None]
        blocks = (side, factor, side, factor)
        self.alpha = shape.reshape(blocks).mean((1, 3), dtype=np.float32)
        total = pixels.reshape(*blocks, 3).mean((1, 3), dtype=np.float32)
        self.colour = total / np.maximum(self.alpha, 1e-6)[..., None]

    def _windows(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        height, width = self.alpha.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + height, size[0]), min(self.left + width, size[1])
        image = slice(top, bottom), slice(left, right)
        own = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return image, own

    def mask(self, image_size: tuple[int, int]) -> np.ndarray:
        """Pixels of which at least half lie inside the shape, ``[H, W]`` bool."""
        result = np.zeros(image_size, bool)
        window, own = self._windows(image_size)
        result[window] = self.alpha[own] >= 0.5
        return result

    def put_on(self, image: np.ndarray) -> None:
        """Blends itself over ``image`` (``[H, W, 3]`` uint8), in place."""
        window, own = self._windows(image.shape[:2])
        alpha = self.alpha[own][..., None]
        blended = image[window] * (1 - alpha) + self.colour[own] * alpha
        image[window] = np.rint(np.clip(blended, 0, 255)).astype(np.uint8)
