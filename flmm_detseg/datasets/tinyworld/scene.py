"""Scenes: what is where. One pure function from (seed, index, split) to an image with its exact masks."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from flmm_detseg.datasets.tinyworld.render import COLOURS, STUFF, TEXTURES, Sticker, paint_stuff
from flmm_detseg.datasets.tinyworld.shapes import KINDS
from flmm_detseg.errors import ConfigError

TINYWORLD_VERSION = "1"
SPLITS: tuple[str, ...] = ("train", "val", "testA", "testB")
SIZES: tuple[str, ...] = ("small", "large")
SPLIT_SIZES = {"testA": ("large",), "testB": ("small",)}  # other splits: both
BASE_SIDE = 112  # the side, in pixels, for which the lengths below are given
RADII = {"small": (7.4, 8.8), "large": (13.5, 18.5)}
NUM_OBJECTS_WEIGHTS = {1: 6, 2: 16, 3: 22, 4: 22, 5: 16, 6: 11, 7: 7}
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS, MIN_STUFF_SHARE = 0.65, 80, 0.35
IDS_PER_SPLIT = 10_000_000


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One thing of a scene.

    Attributes:
        object_id: Position in ``Scene.objects``; later objects lie on top.
        kind: One of ``KINDS``.
        colour: Key of ``COLOURS``.
        size: One of ``SIZES``.
        texture: One of ``TEXTURES``.
        mask: ``[H, W]`` bool, its visible pixels.
        box_xyxy: Tight half-open box of ``mask``, pixels.
        centre_xy: Centre of ``box_xyxy``, pixels.
    """

    object_id: int
    kind: str
    colour: str
    size: str
    texture: str
    mask: np.ndarray
    box_xyxy: tuple[int, int, int, int]
    centre_xy: tuple[float, float]


@dataclass(frozen=True, eq=False)
class StuffRegion:
    """One background region.

    Attributes:
        region_id: Position in ``Scene.stuff`` (top to bottom, or left to right).
        name: One of ``STUFF``; no two regions of a scene share it.
        mask: ``[H, W]`` bool, its visible pixels.
    """

    region_id: int
    name: str
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and all there is to know about it.

    Attributes:
        scene_id: Unique over all splits of a seed; also the COCO image id.
        split: One of ``SPLITS``.
        image: ``[H, W, 3]`` uint8, RGB.
        objects: Things, bottom to top; their masks are disjoint.
        stuff: Regions; together with the objects they cover the image exactly.
        stuff_axis: ``"y"`` if the regions lie one below the other, ``"x"`` if side by side.
    """

    scene_id: int
    split: str
    image: np.ndarray
    objects: tuple[SceneObject, ...]
    stuff: tuple[StuffRegion, ...]
    stuff_axis: str


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open ``(x1, y1, x2, y2)`` of the true pixels of a non-empty ``[H, W]`` mask."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def make_scene(
    seed: int, index: int, split: str = "train", image_size: tuple[int, int] = (BASE_SIDE, BASE_SIDE)
) -> Scene:
    """Makes one scene; the same arguments (and ``TINYWORLD_VERSION``) always give the same bytes.

    Args:
        seed: Seed of the world.
        index: Number of the scene in its split, ``0 .. IDS_PER_SPLIT - 1``.
        split: ``train`` and ``val`` hold objects of both sizes, ``testA`` large ones only, ``testB`` small
            ones only. Splits draw from disjoint random streams.
        image_size: ``(H, W)``, at least 64 each; object sizes scale with the shorter side.

    Returns:
        The scene.

    Raises:
        ConfigError: Unknown split, index out of range or image too small.
    """
    if split not in SPLITS:
        raise ConfigError(f"TinyWorld split {split!r}; allowed: {', '.join(SPLITS)}")
    if not 0 <= index < IDS_PER_SPLIT:
        raise ConfigError(f"TinyWorld scene index {index}; allowed: 0 .. {IDS_PER_SPLIT - 1}")
    if min(image_size) < 64:
        raise ConfigError(f"TinyWorld image size {image_size}; both sides must be at least 64 pixels")
    rng = random.Random(f"tinyworld/{TINYWORLD_VERSION}/{seed}/{split}/{index}")
    names, areas, axis = _lay_out_stuff(rng, image_size)
    image = paint_stuff(rng, names, areas, image_size)
    attributes = _choose_attributes(rng, SPLIT_SIZES.get(split, SIZES))
    attributes, stickers, masks = _place(rng, attributes, areas, image_size)
    for sticker in stickers:
        sticker.put_on(image)
    objects = []
    for object_id, ((kind, colour, size, texture), mask) in enumerate(zip(attributes, masks)):
        box = tight_box(mask)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        objects.append(SceneObject(object_id, kind, colour, size, texture, mask, box, centre))
    covered = np.any(masks, axis=0)
    stuff = tuple(StuffRegion(k, name, area & ~covered) for k, (name, area) in enumerate(zip(names, areas)))
    scene_id = SPLITS.index(split) * IDS_PER_SPLIT + index + 1
    return Scene(scene_id, split, image, tuple(objects), stuff, axis)


def _lay_out_stuff(
    rng: random.Random, image_size: tuple[int, int]
) -> tuple[tuple[str, ...], tuple[np.ndarray, ...], str]:
    """Divides the image into one to three bands with wavy borders: names, masks and axis."""
    count = rng.choices((1, 2, 3), (3, 6, 2))[0]
    axis = rng.choices("yx", (2, 1))[0]
    names = tuple(rng.sample(STUFF, count))
    height, width = image_size
    across, along = (height, width) if axis == "y" else (width, height)
    steps = np.arange(along)
    band = np.zeros((across, along), np.int8)
    cuts = {1: (), 2: (rng.uniform(0.35, 0.65),), 3: (rng.uniform(0.27, 0.37), rng.uniform(0.63, 0.73))}[count]
    for cut in cuts:
        wave = rng.uniform(0, 0.03) * np.sin(steps * rng.uniform(4, 12) / along + rng.uniform(0, 6.28))
        border = across * (cut + rng.uniform(-0.06, 0.06) * (steps / along - 0.5) + wave)
        band += np.arange(across)[:, None] >= border[None]
    if axis == "x":
        band = band.T
    return names, tuple(band == k for k in range(count)), axis


def _choose_attributes(rng: random.Random, sizes: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    """(kind, colour, size, texture) of every object; some repeat parts of an earlier one, so that words matter."""
    weights = dict(NUM_OBJECTS_WEIGHTS)
    if sizes == ("large",):
        weights = {n: w for n, w in weights.items() if n <= 5}
    count = rng.choices(tuple(weights), tuple(weights.values()))[0]
    chosen: list[tuple[str, str, str, str]] = []
    for _ in range(count):
        kind, colour = rng.choice(KINDS), rng.choice(tuple(COLOURS))
        if chosen and rng.random() < 0.5:
            other = rng.choice(chosen)
            same_kind, same_colour = rng.choice(((True, False), (True, False), (False, True), (True, True)))
            kind = other[0] if same_kind else kind
            colour = other[1] if same_colour else colour
        texture = rng.choices(TEXTURES, (2, 1, 1))[0]
        size = rng.choices(sizes, (3, 2) if len(sizes) == 2 else (1,))[0]
        chosen.append((kind, colour, size, texture))
    # Small objects are drawn last, on top.
    return sorted(chosen, key=lambda item: -SIZES.index(item[2]))


def _place(
    rng: random.Random,
    attributes: list[tuple[str, str, str, str]],
    areas: tuple[np.ndarray, ...],
    image_size: tuple[int, int],
) -> tuple[list[tuple[str, str, str, str]], list[Sticker], list[np.ndarray]]:
    """Finds a place for every object; one for which there is none after many trials is left out."""
    scale = min(image_size) / BASE_SIDE
    kept: list[tuple[str, str, str, str]] = []
    stickers: list[Sticker] = []
    visible: list[np.ndarray] = []
    full: list[int] = []
    boxes: list[tuple[float, float, float]] = []
    for item in attributes:
        kind, colour, size, texture = item
        radius = scale * rng.uniform(*RADII[size])
        angle, phase = math.radians(rng.uniform(-9, 9)), rng.randrange(64)
        for _ in range(60):
            margin = radius * 1.08 + 1
            x, y = rng.uniform(margin, image_size[1] - margin), rng.uniform(margin, image_size[0] - margin)
            # Cheap test first: the centres of two shapes never come so close that one hides the other's core.
            if any(max(abs(x - bx), abs(y - by)) < 0.75 * max(radius, br) + 0.45 * min(radius, br) for bx, by, br in boxes):
                continue
            sticker = Sticker(kind, colour, texture, (x, y), radius, angle, phase, scale)
            mask = sticker.mask(image_size)
            left = [old & ~mask for old in visible]
            if _all_visible(left, full, mask, areas, scale):
                kept.append(item)
                stickers.append(sticker)
                visible = [*left, mask]
                full.append(int(mask.sum()))
                boxes.append((x, y, radius))
                break
    return kept, stickers, visible


def _all_visible(
    left: list[np.ndarray], full: list[int], mask: np.ndarray, areas: tuple[np.ndarray, ...], scale: float
) -> bool:
    floor = MIN_VISIBLE_PIXELS * scale * scale
    for rest, area in zip(left, full):
        pixels = int(rest.sum())
        if pixels < MIN_VISIBLE_SHARE * area or pixels < floor:
            return False
    covered = np.any([*left, mask], axis=0)
    return int(mask.sum()) >= floor and all(
        int((area & ~covered).sum()) >= MIN_STUFF_SHARE * int(area.sum()) for area in areas
    )
