"""TinyWorld scenes: what exists in the world and where it is placed. Drawing is in ``render.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINYWORLD_VERSION = "1"

KINDS: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "heart",
    "diamond",
    "crescent",
    "arrow",
    "hexagon",
    "flower",
)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 28, 36),
    "green": (18, 150, 44),
    "blue": (28, 60, 214),
    "yellow": (246, 222, 24),
    "orange": (248, 128, 12),
    "purple": (134, 30, 172),
    "white": (250, 250, 250),
    "black": (18, 18, 18),
}
SIZES: tuple[str, ...] = ("small", "large")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
STUFF: tuple[str, ...] = ("sky", "grass", "water", "sand", "wall", "road")

SPLITS: tuple[str, ...] = ("train", "val", "testA", "testB")
# Visible part an object must keep, in pixels and as a share of its whole shape.
MIN_VISIBLE_PIXELS = 80
MIN_VISIBLE_SHARE = 0.6
_SMALL_RADIUS = (7.5, 9.0)
_LARGE_RADIUS = (13.0, 18.5)
_MAX_OBJECTS = 7


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open pixel box, xyxy, of a bool mask ``[H, W]`` that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class SceneObject:
    """One object; masks and boxes describe its visible pixels.

    Attributes:
        object_id: 1-based, in drawing order (later objects cover earlier ones).
        kind: One of :data:`KINDS`.
        colour: Key of :data:`COLOURS`.
        size: One of :data:`SIZES`.
        texture: One of :data:`TEXTURES`.
        mask: bool ``[H, W]``.
        box_xyxy: Half-open pixel box of the mask.
        centre_xy: Centre of the box in pixels.
    """

    object_id: int
    kind: str
    colour: str
    size: str
    texture: str
    mask: np.ndarray
    box_xyxy: tuple[int, int, int, int]
    centre_xy: tuple[float, float]


@dataclass(frozen=True)
class StuffRegion:
    """One textured background region; ``mask`` (bool ``[H, W]``) excludes objects."""

    region_id: int
    name: str
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """One image and everything that is true of it. ``image`` is uint8 RGB ``[H, W, 3]``."""

    scene_id: int
    split: str
    image: np.ndarray
    objects: tuple[SceneObject, ...]
    stuff: tuple[StuffRegion, ...]


@dataclass(frozen=True)
class Placement:
    """An object before drawing: attributes, centre ``(x, y)`` and radius in pixels, rotation in radians."""

    kind: str
    colour: str
    size: str
    texture: str
    centre_xy: tuple[float, float]
    radius: float
    angle: float


def scene_rng(seed: int, index: int, split: str, purpose: int = 0) -> np.random.Generator:
    """Random stream of one scene; splits, scenes and purposes never share a stream."""
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def plan_objects(rng: np.random.Generator, image_size: tuple[int, int], split: str) -> list[Placement]:
    """Draws 1 to 7 objects; large ones come first so that small ones lie on top.

    testA holds scenes of large objects only, testB of small objects mainly (the analogue of RefCOCO's people / others).
    """
    height, width = image_size
    num_objects = int(
        rng.choice(np.arange(1, _MAX_OBJECTS + 1), p=[0.06, 0.16, 0.22, 0.22, 0.17, 0.11, 0.06])
    )
    share_large = {"testA": 1.0, "testB": 0.2}.get(split, 0.5)
    kinds = list(rng.choice(KINDS, size=num_objects))
    colours = list(rng.choice(list(COLOURS), size=num_objects))
    # Similar objects make attribute expressions harder: repeat a kind or a colour now and then.
    for i in range(1, num_objects):
        if rng.random() < 0.3:
            kinds[i] = kinds[int(rng.integers(i))]
        if rng.random() < 0.2:
            colours[i] = colours[int(rng.integers(i))]
    placed: list[Placement] = []
    sizes = ["large" if rng.random() < share_large else "small" for _ in range(num_objects)]
    for kind, colour, size in sorted(zip(kinds, colours, sizes), key=lambda item: item[2]):
        low, high = _LARGE_RADIUS if size == "large" else _SMALL_RADIUS
        texture = str(rng.choice(TEXTURES, p=[0.5, 0.25, 0.25]))
        for _ in range(40):
            radius = float(rng.uniform(low, high))
            x = float(rng.uniform(radius, width - radius))
            y = float(rng.uniform(radius, height - radius))
            # Moderate overlap: centres keep 0.75 of the summed radii apart.
            if all(
                np.hypot(x - p.centre_xy[0], y - p.centre_xy[1]) > 0.75 * (radius + p.radius) for p in placed
            ):
                angle = float(rng.uniform(-0.3, 0.3)) if kind != "arrow" else float(rng.uniform(0, 2 * np.pi))
                placed.append(Placement(str(kind), str(colour), str(size), texture, (x, y), radius, angle))
                break
    return placed
