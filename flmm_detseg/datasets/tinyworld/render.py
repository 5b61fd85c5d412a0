"""Draws scenes: antialiased colours by supersampling, exact visible masks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.datasets.tinyworld.scene import (
    COLOURS,
    MIN_VISIBLE_PIXELS,
    MIN_VISIBLE_SHARE,
    STUFF,
    Placement,
    Scene,
    SceneObject,
    StuffRegion,
    mask_box,
    plan_objects,
    scene_rng,
)

_SUPERSAMPLE = 3
_STUFF_BASE = {
    "sky": (176, 206, 232),
    "grass": (124, 158, 108),
    "water": (92, 140, 166),
    "sand": (216, 198, 156),
    "wall": (176, 122, 104),
    "road": (126, 126, 130),
}


def make_scene(
    seed: int, index: int, split: str = "train", image_size: tuple[int, int] = (112, 112)
) -> Scene:
    """Draws one scene; the same arguments and :data:`TINYWORLD_VERSION` give the same bytes.

    Args:
        seed: Seed of the world.
        index: Number of the scene in its split.
        split: ``train``, ``val``, ``testA`` or ``testB``: disjoint random streams.
        image_size: ``(H, W)`` in pixels.

    Returns:
        The scene with visible masks; objects that would be hidden too much are left out before drawing.
    """
    rng = scene_rng(seed, index, split)
    image, region_map, names = draw_stuff(rng, image_size)
    placements = plan_objects(rng, image_size, split)
    shapes = [_shape_alpha(p, image_size) for p in placements]
    keep = _visible_enough(shapes)
    objects: list[SceneObject] = []
    owner = np.zeros(image_size, dtype=np.int32)
    for number, i in enumerate(keep, start=1):
        alpha = shapes[i][..., None]
        image = image * (1 - alpha) + _fill(placements[i], image_size) * alpha
        owner[shapes[i] > 0.5] = number
    for number, i in enumerate(keep, start=1):
        mask = owner == number
        box = mask_box(mask)
        p = placements[i]
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        objects.append(SceneObject(number, p.kind, p.colour, p.size, p.texture, mask, box, centre))
    stuff = []
    for region, name in enumerate(names, start=1):
        mask = (region_map == region) & (owner == 0)
        if mask.any():
            stuff.append(StuffRegion(region, name, mask))
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Scene(index, split, pixels, tuple(objects), tuple(stuff))


def draw_object(image: np.ndarray, placement: Placement) -> None:
    """Draws one object into a float image ``[H, W, 3]``, in place."""
    alpha = _shape_alpha(placement, image.shape[:2])[..., None]
    image[:] = image * (1 - alpha) + _fill(placement, image.shape[:2]) * alpha


def _visible_enough(shapes: list[np.ndarray]) -> list[int]:
    """Indices of shapes to draw: newest first keeps what it needs, an object hidden too much is dropped."""
    keep: list[int] = []
    covered = np.zeros(shapes[0].shape, dtype=bool) if shapes else np.zeros((0, 0), dtype=bool)
    for i in reversed(range(len(shapes))):
        whole = shapes[i] > 0.5
        visible = int((whole & ~covered).sum())
        if visible >= MIN_VISIBLE_PIXELS and visible >= MIN_VISIBLE_SHARE * int(whole.sum()):
            keep.append(i)
            covered |= whole
    return sorted(keep)


def draw_stuff(
    rng: np.random.Generator, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draws one to three textured regions split by slightly tilted lines.

    Args:
        rng: Source of the draw.
        image_size: ``(H, W)``.

    Returns:
        Image float64 ``[H, W, 3]``, region map int32 ``[H, W]`` (1-based) and names of the regions.
    """
    height, width = image_size
    num_regions = int(rng.choice([1, 2, 3], p=[0.25, 0.55, 0.2]))
    names = [str(n) for n in rng.choice(STUFF, size=num_regions, replace=False)]
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    vertical = rng.random() < 0.3
    along, across, extent = (yy, xx, width) if vertical else (xx, yy, height)
    cuts = [(i + 1) / num_regions * extent + rng.uniform(-0.1, 0.1) * extent for i in range(num_regions - 1)]
    slopes = [rng.uniform(-0.15, 0.15) for _ in cuts]
    region_map = np.ones(image_size, dtype=np.int32)
    for cut, slope in zip(cuts, slopes):
        region_map += (across > cut + slope * (along - extent / 2)).astype(np.int32)
    image = np.zeros((height, width, 3))
    for region, name in enumerate(names, start=1):
        texture = _stuff_texture(name, yy, xx, rng)
        image = np.where((region_map == region)[..., None], texture, image)
    return image, region_map, names


def _stuff_texture(name: str, yy: np.ndarray, xx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 1, yy.shape)
    phase = rng.uniform(0, 2 * np.pi)
    if name == "sky":
        shade = 10 * np.sin(yy / 30 + phase) + 1.5 * noise
    elif name == "grass":
        shade = 9 * noise + 8 * np.sin(xx * 1.3 + phase)
    elif name == "water":
        shade = 12 * np.sin(yy / 2.2 + 1.5 * np.sin(xx / 9 + phase)) + 2 * noise
    elif name == "sand":
        shade = 13 * noise
    elif name == "wall":
        row = np.floor(yy / 8)
        joint = (yy % 8 < 1) | ((xx + 7 * (row % 2)) % 14 < 1)
        shade = np.where(joint, 34.0, 0.0) + 3 * noise
    else:  # road: grey with rare light dashes
        dash = (np.abs((yy + 11 * phase) % 37 - 18) < 1.2) & ((xx % 16) < 9)
        shade = np.where(dash, 70.0, 0.0) + 5 * noise
    return np.asarray(_STUFF_BASE[name], dtype=np.float64) + shade[..., None]


def _fill(placement: Placement, image_size: tuple[int, int]) -> np.ndarray:
    """Colour of every pixel of the image if the object covered it all, ``[H, W, 3]``."""
    base = np.asarray(COLOURS[placement.colour], dtype=np.float64)
    # Light colours get dark marks, dark ones light marks: the hue of the object stays readable.
    marks = base * 0.62 if base.mean() > 90 else base * 0.6 + 95
    yy, xx = np.mgrid[0 : image_size[0], 0 : image_size[1]].astype(np.float64)
    yy, xx = yy - placement.centre_xy[1], xx - placement.centre_xy[0]
    if placement.texture == "striped":
        where = (xx + yy) % 6 < 2.2
    elif placement.texture == "dotted":
        where = np.hypot((xx % 5.5) - 2.75, (yy % 5.5) - 2.75) < 1.35
    else:
        where = np.zeros(image_size, dtype=bool)
    return np.where(where[..., None], marks, base)


def _shape_alpha(placement: Placement, image_size: tuple[int, int]) -> np.ndarray:
    """Coverage of the shape, ``[H, W]`` in [0, 1]."""
    s = _SUPERSAMPLE
    canvas = Image.new("L", (image_size[1] * s, image_size[0] * s), 0)
    draw = ImageDraw.Draw(canvas)
    x, y = placement.centre_xy[0] * s, placement.centre_xy[1] * s
    r = placement.radius * s
    cos, sin = math.cos(placement.angle), math.sin(placement.angle)

    def at(u: float, v: float) -> tuple[float, float]:
        return x + r * (u * cos - v * sin), y + r * (u * sin + v * cos)

    def polygon(points: list[tuple[float, float]], fill: int = 255) -> None:
        draw.polygon([at(u, v) for u, v in points], fill=fill)

    def disc(u: float, v: float, radius: float, fill: int = 255) -> None:
        cx, cy = at(u, v)
        draw.ellipse([cx - radius * r, cy - radius * r, cx + radius * r, cy + radius * r], fill=fill)

    def regular(corners: int, inner: float | None = None) -> list[tuple[float, float]]:
        steps = corners * (2 if inner else 1)
        radii = [1.0 if inner is None or k % 2 == 0 else inner for k in range(steps)]
        angles = [2 * math.pi * k / steps - math.pi / 2 for k in range(steps)]
        return [(radius * math.cos(a), radius * math.sin(a)) for radius, a in zip(radii, angles)]

    kind = placement.kind
    if kind == "circle":
        disc(0, 0, 0.95)
    elif kind == "square":
        polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])
    elif kind == "triangle":
        polygon([(0, -1), (0.98, 0.78), (-0.98, 0.78)])
    elif kind == "star":
        polygon(regular(5, inner=0.45))
    elif kind == "ring":
        disc(0, 0, 1.0)
        disc(0, 0, 0.52, fill=0)
    elif kind == "cross":
        polygon([(-0.34, -1), (0.34, -1), (0.34, 1), (-0.34, 1)])
        polygon([(-1, -0.34), (1, -0.34), (1, 0.34), (-1, 0.34)])
    elif kind == "heart":
        disc(-0.47, -0.32, 0.52)
        disc(0.47, -0.32, 0.52)
        polygon([(-0.93, -0.08), (0.93, -0.08), (0, 0.98)])
    elif kind == "diamond":
        polygon([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)])
    elif kind == "crescent":
        disc(0, 0, 1.0)
        disc(0.5, 0, 0.8, fill=0)
    elif kind == "arrow":
        polygon([(-1, -0.26), (0.1, -0.26), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.26), (-1, 0.26)])
    elif kind == "hexagon":
        polygon(regular(6))
    else:  # flower: five petals around a hole-free centre
        for k in range(5):
            angle = 2 * math.pi * k / 5 - math.pi / 2
            disc(0.58 * math.cos(angle), 0.58 * math.sin(angle), 0.43)
        disc(0, 0, 0.4)
    small = np.asarray(canvas, dtype=np.float64).reshape(image_size[0], s, image_size[1], s).mean(axis=(1, 3))
    return small / 255.0
