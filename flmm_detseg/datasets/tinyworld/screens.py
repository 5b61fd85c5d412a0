"""Phone screens: sequences that keep their wallpaper and change their foreground (clock, icons).

For work on repeated backgrounds: frames of one sequence are equal outside the foreground masks, pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_detseg.datasets.tinyworld.render import draw_object
from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, Placement, mask_box, scene_rng

_SCREENS = 4
_CLOCK_ROWS = 18
_ICON_RADIUS = 8.5
# Seven segments (top, upper left, upper right, middle, lower left, lower right, bottom) of the digits.
_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)


@dataclass(frozen=True)
class ScreenElement:
    """One foreground element: the clock or an icon. ``mask`` is bool ``[H, W]``, ``box_xyxy`` half-open pixels."""

    name: str
    text: str
    mask: np.ndarray
    box_xyxy: tuple[int, int, int, int]


@dataclass(frozen=True)
class Screen:
    """One frame. ``image`` uint8 ``[H, W, 3]``; ``questions`` are (question, answer) pairs about the foreground."""

    sequence_id: int
    frame: int
    image: np.ndarray
    elements: tuple[ScreenElement, ...]
    questions: tuple[tuple[str, str], ...]


def make_screens(
    seed: int,
    sequence_id: int,
    num_frames: int,
    split: str = "train",
    image_size: tuple[int, int] = (112, 112),
    num_changing: int = 6,
) -> list[Screen]:
    """Draws the frames of one sequence.

    Args:
        seed: Seed of the world.
        sequence_id: Which wallpaper.
        num_frames: Frames; minutes pass between them and some icons change.
        split: As for scenes.
        image_size: ``(H, W)``.
        num_changing: Only the first so many of the six icons ever change.

    Returns:
        Frames in order of time.
    """
    rng = scene_rng(seed, sequence_id, split, _SCREENS)
    wallpaper = _wallpaper(rng, image_size)
    minute = int(rng.integers(24 * 60))
    icons = [_random_icon(rng) for _ in range(6)]
    screens = []
    for frame in range(num_frames):
        screens.append(_draw(sequence_id, frame, wallpaper, minute, icons))
        minute = (minute + int(rng.integers(1, 9))) % (24 * 60)
        icons[int(rng.integers(num_changing))] = _random_icon(rng)
    return screens


def _random_icon(rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))


def _wallpaper(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """A smooth gradient with soft waves, away from the colours of objects."""
    yy, xx = np.mgrid[0 : image_size[0], 0 : image_size[1]].astype(np.float64)
    start, end = rng.uniform(90, 190, (2, 3))
    share = (yy / image_size[0])[..., None]
    waves = 9 * np.sin(xx / rng.uniform(9, 20) + yy / rng.uniform(14, 30) + rng.uniform(0, 6))
    return start * (1 - share) + end * share + waves[..., None]


def _draw(
    sequence_id: int, frame: int, wallpaper: np.ndarray, minute: int, icons: list[tuple[str, str]]
) -> Screen:
    image = wallpaper.copy()
    height, width = image.shape[:2]
    clock = f"{minute // 60:02d}:{minute % 60:02d}"
    elements = [_draw_clock(image, clock)]
    for slot, (kind, colour) in enumerate(icons):
        centre = ((slot % 3 + 0.5) * width / 3, _CLOCK_ROWS + (slot // 3 + 0.5) * (height - _CLOCK_ROWS) / 2)
        placement = Placement(kind, colour, "small", "plain", centre, _ICON_RADIUS, 0.0)
        before = image.copy()
        draw_object(image, placement)
        mask = (image != before).any(axis=-1)
        elements.append(ScreenElement("icon", f"{colour} {kind}", mask, mask_box(mask)))
    questions = [("what time is it ?", clock)]
    for name in sorted({text for _, text in [(e.name, e.text) for e in elements[1:]]}):
        count = sum(e.text == name for e in elements)
        questions.append((f"how many icons show a {name} ?", str(count)))
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Screen(sequence_id, frame, pixels, tuple(elements), tuple(questions))


def _draw_clock(image: np.ndarray, text: str) -> ScreenElement:
    mask = draw_digits(image, text, (image.shape[1] // 2 - 22, 3))
    return ScreenElement("clock", text, mask, mask_box(mask))


def draw_digits(image: np.ndarray, text: str, corner_xy: tuple[int, int]) -> np.ndarray:
    """Draws seven-segment digits into an image, in place.

    Args:
        image: ``[H, W, 3]``.
        text: Digits (10 pixels wide each, 13 high) and colons (5 wide).
        corner_xy: Upper left corner of the text in pixels.

    Returns:
        The drawn pixels, bool ``[H, W]``.
    """
    mask = np.zeros(image.shape[:2], dtype=bool)
    x, y = corner_xy
    for character in text:
        if character == ":":
            mask[y + 3 : y + 5, x + 1 : x + 3] = mask[y + 8 : y + 10, x + 1 : x + 3] = True
            x += 5
            continue
        top, left, right, middle, low_left, low_right, bottom = (s == "1" for s in _SEGMENTS[int(character)])
        mask[y : y + 2, x : x + 8] |= top
        mask[y + 5 : y + 7, x : x + 8] |= middle
        mask[y + 11 : y + 13, x : x + 8] |= bottom
        mask[y : y + 7, x : x + 2] |= left
        mask[y : y + 7, x + 6 : x + 8] |= right
        mask[y + 5 : y + 13, x : x + 2] |= low_left
        mask[y + 5 : y + 13, x + 6 : x + 8] |= low_right
        x += 10
    image[mask] = 252
    return mask
