"""Streams of frames that repeat their background, with a question about every frame.

What the background-token cache is measured with: phone screens (a clock, a score and an icon change on repeated
wallpapers), a fixed camera (objects move in front of one scene), slides (content changes on one template), and, as the
case that no such cache can win, a chat that scrolls. Frames come lossless, through JPEG, or now this way and now that.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from flmm_detseg.datasets.tinyworld.render import draw_object, draw_stuff
from flmm_detseg.datasets.tinyworld.scene import (
    COLOURS,
    KINDS,
    TEXTURES,
    Placement,
    Scene,
    SceneObject,
    StuffRegion,
    mask_box,
    scene_rng,
)
from flmm_detseg.datasets.tinyworld.screens import Screen, draw_digits, make_screens
from flmm_detseg.datasets.tinyworld.stream_questions import frame_questions, pick_question
from flmm_detseg.errors import ConfigError

STREAM_KINDS: tuple[str, ...] = ("screen", "camera", "slides", "scroll")
ENCODINGS: tuple[str, ...] = ("png", "jpeg", "mixed")
CLOCK_QUESTION, SCORE_QUESTION = "what time is it ?", "what is the score ?"
_STREAMS = 5
_SIZE = (112, 112)
_SCREEN_SIZE = (112, 80)
# Share of frames that are shown a second time, with another question.
_ASK_AGAIN = {"screen": 0.1, "camera": 0.1, "slides": 0.3, "scroll": 0.1}
_SCROLL_STEP, _MESSAGE_ROWS, _HEADER_ROWS = 7, 28, 18
_CENTRES = ((28.0, 28.0), (84.0, 28.0), (28.0, 84.0), (84.0, 84.0))

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class StreamItem:
    """One frame of a stream and a question about it.

    Attributes:
        stream: Name of the stream; frames of one name come one after the other.
        kind: One of :data:`STREAM_KINDS`.
        frame: 0-based place in the stream.
        encoding: ``"png"`` or ``"jpeg"``: what this frame went through.
        image: RGB uint8 ``[H, W, 3]``, as the model gets it (decoded).
        scene: What the frame shows; ``scene.image`` is the frame before encoding.
        fixed: Ids of the scene's objects that belong to the background.
        objects_xyxy: Boxes of everything that changes in the stream, half-open pixels.
        question: Lower-case words.
        answer: The right one, words and punctuation separated by spaces.
        group: What the answer needs: ``"objects"``, ``"background"``, or both (``"cross"``).
        questions: All questions that the frame allows: (question, answer, group).
        exact_repeat: Whether an earlier frame of the stream has the same pixels. A plain prefix cache serves those.
    """

    stream: str
    kind: str
    frame: int
    encoding: str
    image: np.ndarray
    scene: Scene
    fixed: frozenset[int]
    objects_xyxy: tuple[Box, ...]
    question: str
    answer: str
    group: str
    questions: tuple[tuple[str, str, str], ...]
    exact_repeat: bool


@dataclass(frozen=True, eq=False)
class _Frame:
    scene: Scene
    fixed: frozenset[int]
    objects_xyxy: tuple[Box, ...]
    # Questions about texts, which are not among the scene's objects.
    texts: tuple[tuple[str, str], ...] = ()


def make_stream(
    kind: str,
    seed: int,
    index: int,
    num_frames: int,
    *,
    encoding: str = "png",
    quality: int = 90,
    split: str = "val",
) -> list[StreamItem]:
    """Draws one stream; the same arguments give the same bytes (of one version of Pillow, for JPEG).

    Args:
        kind: One of :data:`STREAM_KINDS`.
        seed: Seed of the world.
        index: Number of the stream.
        num_frames: Frames, each with one question.
        encoding: ``"png"``, ``"jpeg"``, or ``"mixed"``: each frame one of the two, at random.
        quality: Of JPEG.
        split: As for scenes.

    Returns:
        Items in order of time.

    Raises:
        ConfigError: Unknown kind or encoding.
    """
    for name, value, allowed in (("kind", kind, STREAM_KINDS), ("encoding", encoding, ENCODINGS)):
        if value not in allowed:
            raise ConfigError(f"`{name}` of a stream is {value!r}; allowed: {', '.join(allowed)}")
    rng = scene_rng(seed, index, split, _STREAMS + 10 * STREAM_KINDS.index(kind))
    shown = _with_repeats(_MAKERS[kind](rng, seed, index, num_frames, split), rng, _ASK_AGAIN[kind])
    seen: set[bytes] = set()
    items = []
    for number, frame in enumerate(shown[:num_frames]):
        used = str(rng.choice(("png", "jpeg"))) if encoding == "mixed" else encoding
        image = reencode(frame.scene.image, used, quality)
        # As the world's language writes it: punctuation stands alone.
        texts = ((question, text.replace(":", " : "), "objects") for question, text in frame.texts)
        questions = [*frame_questions(frame.scene, frame.fixed), *texts]
        question, answer, group = pick_question(questions, rng)
        repeat = image.tobytes() in seen
        seen.add(image.tobytes())
        items.append(
            StreamItem(
                f"{kind}/{encoding}/{index}", kind, number, used, image, frame.scene, frame.fixed,
                frame.objects_xyxy, question, answer, group, tuple(questions), repeat,
            )
        )  # fmt: skip
    return items


def reencode(image: np.ndarray, encoding: str, quality: int = 90) -> np.ndarray:
    """Writes and reads an image.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        encoding: ``"png"`` or ``"jpeg"``.
        quality: Of JPEG.

    Returns:
        RGB uint8 ``[H, W, 3]``; of a PNG the same pixels.
    """
    file = io.BytesIO()
    options = {"quality": quality} if encoding == "jpeg" else {}
    Image.fromarray(image).save(file, encoding, **options)
    return np.array(Image.open(file).convert("RGB"))


def _with_repeats(frames: list[_Frame], rng: np.random.Generator, share: float) -> list[_Frame]:
    return [shown for frame in frames for shown in [frame] * (2 if rng.random() < share else 1)]


def _screen_frames(
    rng: np.random.Generator, seed: int, index: int, num_frames: int, split: str
) -> list[_Frame]:
    """Two apps with a wallpaper each, used alternately."""
    apps = [
        make_screens(seed, 2 * index + app, num_frames, split, _SCREEN_SIZE, num_changing=1) for app in (0, 1)
    ]
    frames, app, left = [], 0, 0
    for number in range(num_frames):
        if left == 0:
            app, left = 1 - app, int(rng.integers(4, 9))
        left -= 1
        frames.append(_screen_frame(apps[app][number], split, int(rng.integers(100))))
    return frames


def _screen_frame(screen: Screen, split: str, score: int) -> _Frame:
    image = screen.image.copy()
    text = f"{score:02d}"
    mask = draw_digits(image, text, (image.shape[1] // 2 - 9, image.shape[0] - 14))
    clock, *icons = screen.elements
    objects = []
    for number, icon in enumerate(icons, start=1):
        colour, kind = icon.text.split()
        x0, y0, x1, y1 = icon.box_xyxy
        centre = ((x0 + x1) / 2, (y0 + y1) / 2)
        objects.append(SceneObject(number, kind, colour, "small", "plain", icon.mask, icon.box_xyxy, centre))
    scene = Scene(screen.sequence_id, split, image, tuple(objects), ())
    changing = (clock.box_xyxy, objects[0].box_xyxy, mask_box(mask))
    texts = ((CLOCK_QUESTION, clock.text), (SCORE_QUESTION, text))
    return _Frame(scene, frozenset(range(2, len(objects) + 1)), changing, texts)


@dataclass(frozen=True, eq=False)
class _Stage:
    """The constant part: regions, and objects in front of them."""

    image: np.ndarray
    region_map: np.ndarray
    names: list[str]
    fixed: tuple[Placement, ...]

    def frame(self, number: int, split: str, moving: list[Placement]) -> _Frame:
        """The stage with further objects; none of them touches another."""
        image = self.image.copy()
        objects, owner = [], np.zeros(image.shape[:2], dtype=bool)
        for object_id, placement in enumerate((*self.fixed, *moving), start=1):
            before = image.copy()
            draw_object(image, placement)
            mask = (image != before).any(-1)
            owner |= mask
            objects.append(_scene_object(object_id, placement, mask))
        stuff = [
            StuffRegion(region, name, (self.region_map == region) & ~owner)
            for region, name in enumerate(self.names, start=1)
        ]
        pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        fixed = frozenset(range(1, len(self.fixed) + 1))
        boxes = tuple(obj.box_xyxy for obj in objects if obj.object_id not in fixed)
        return _Frame(Scene(number, split, pixels, tuple(objects), tuple(stuff)), fixed, boxes)


def _scene_object(object_id: int, placement: Placement, mask: np.ndarray) -> SceneObject:
    x0, y0, x1, y1 = box = mask_box(mask)
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    p = placement
    return SceneObject(object_id, p.kind, p.colour, p.size, p.texture, mask, box, centre)


def _stage(rng: np.random.Generator, cells: Iterable[int]) -> _Stage:
    image, region_map, names = draw_stuff(rng, _SIZE)
    fixed = tuple(_look(rng, _CENTRES[cell], large=bool(rng.random() < 0.5)) for cell in cells)
    return _Stage(image, region_map, names, fixed)


def _look(rng: np.random.Generator, centre_xy: tuple[float, float], large: bool = False) -> Placement:
    """An object of a random look at a place."""
    radius = float(rng.uniform(13, 17) if large else rng.uniform(7.5, 9))
    kind, colour, texture = (str(rng.choice(names)) for names in (KINDS, list(COLOURS), TEXTURES))
    return Placement(kind, colour, "large" if large else "small", texture, centre_xy, radius, 0.0)


def _camera_frames(
    rng: np.random.Generator, seed: int, index: int, num_frames: int, split: str
) -> list[_Frame]:
    """Two objects go to and fro in front of two that stand; now and then another one comes."""
    cells = [int(cell) for cell in rng.permutation(4)]
    stage = _stage(rng, cells[:2])
    looks = [_look(rng, _CENTRES[cell]) for cell in cells[2:]]
    frames = []
    for number in range(num_frames):
        if rng.random() < 0.1:
            changed = int(rng.integers(2))
            looks[changed] = _look(rng, _CENTRES[cells[2 + changed]])
        steps = rng.integers(-3, 4, (2, 2)) * 2.0
        moving = [
            replace(look, centre_xy=(look.centre_xy[0] + dx, look.centre_xy[1] + dy))
            for look, (dx, dy) in zip(looks, steps.tolist(), strict=True)
        ]
        frames.append(stage.frame(number, split, moving))
    return frames


def _slide_frames(
    rng: np.random.Generator, seed: int, index: int, num_frames: int, split: str
) -> list[_Frame]:
    """A template with two marks; one or two pictures per slide; the speaker goes back now and then."""
    cells = [int(cell) for cell in rng.permutation(4)]
    stage = _stage(rng, cells[:2])
    frames: list[_Frame] = []
    for number in range(num_frames):
        if len(frames) > 2 and rng.random() < 0.15:
            frames.append(frames[int(rng.integers(len(frames)))])
            continue
        places = cells[2:] if rng.random() < 0.6 else [cells[2 + int(rng.integers(2))]]
        moving = [_look(rng, _CENTRES[cell]) for cell in places]
        frames.append(stage.frame(number, split, moving))
    return frames


def _scroll_frames(
    rng: np.random.Generator, seed: int, index: int, num_frames: int, split: str
) -> list[_Frame]:
    """Messages with a picture each move up under a header with a clock."""
    height, width = _SIZE
    rows = height + _SCROLL_STEP * num_frames
    shade = np.linspace(225, 175, rows)[:, None, None]
    canvas = np.broadcast_to(shade, (rows, width, 3)).copy()
    placements = []
    for top in range(_HEADER_ROWS, rows - _MESSAGE_ROWS, _MESSAGE_ROWS):
        left = int(rng.integers(2)) * 24
        canvas[top + 2 : top + 26, left + 4 : left + 84] = rng.uniform(120, 200, 3)
        placements.append(_look(rng, (float(left + rng.integers(20, 68)), top + 14.0)))
    minute = int(rng.integers(24 * 60))
    frames = []
    for number in range(num_frames):
        offset = _SCROLL_STEP * number
        image = canvas[offset : offset + height].copy()
        objects: list[SceneObject] = []
        for placement in placements:
            x, y = placement.centre_xy
            if not _HEADER_ROWS + 10 <= y - offset <= height - 10:
                continue
            moved = replace(placement, centre_xy=(x, y - offset))
            before = image.copy()
            draw_object(image, moved)
            objects.append(_scene_object(len(objects) + 1, moved, (image != before).any(-1)))
        pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        pixels[:_HEADER_ROWS] = 96
        minute = (minute + int(rng.random() < 0.3)) % (24 * 60)
        clock = f"{minute // 60:02d}:{minute % 60:02d}"
        draw_digits(pixels, clock, (width // 2 - 22, 3))
        scene = Scene(number, split, pixels, tuple(objects), ())
        frames.append(_Frame(scene, frozenset(), ((0, 0, width, height),), ((CLOCK_QUESTION, clock),)))
    return frames


_MAKERS: dict[str, Callable[[np.random.Generator, int, int, int, str], list[_Frame]]] = {
    "screen": _screen_frames,
    "camera": _camera_frames,
    "slides": _slide_frames,
    "scroll": _scroll_frames,
}
