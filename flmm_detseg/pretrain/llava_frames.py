"""Frames of TinyWorld's streams as data of the tiny LLaVA: it learns to read clocks and scores."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from flmm_detseg.datasets.tinyworld import Scene
from flmm_detseg.datasets.tinyworld.streams import CLOCK_QUESTION, SCORE_QUESTION, StreamItem, make_stream
from flmm_detseg.errors import ConfigError
from flmm_detseg.ops.letterbox import centre_padding

FRAME_KINDS = ("clock", "score", "frame")
# Half are screens: reading is the new thing to learn. A fifth shows scrolling chats, which have a clock as well.
STREAM_CYCLE = (
    "screen",
    "camera",
    "screen",
    "scroll",
    "screen",
    "slides",
    "camera",
    "screen",
    "scroll",
    "screen",
)
# Longest side of a frame, pixels: only models of this input size can read streams.
FRAME_SIDE = 112
_FRAMES_PER_STREAM = 5
_MOST_QUESTIONS = 16
_TEXT_KINDS = {CLOCK_QUESTION: "clock", SCORE_QUESTION: "score"}
# CLIP's mean colour, as LLaVA's processor pads.
_PAD_RGB = (122, 116, 104)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame as the model sees it.

    Attributes:
        scene: Image and masks on the padded square; ``scene.image`` is after encoding.
        questions: (kind of :data:`FRAME_KINDS`, question, answer), coordinates and places as in the unpadded image.
    """

    scene: Scene
    questions: tuple[tuple[str, str, str], ...]


def stream_frames(seed: int, start: int, num_frames: int, side: int, split: str = "train") -> list[Frame]:
    """Draws frames of several streams.

    Args:
        seed: World seed.
        start: Number of the first stream; a stream is used for five frames.
        num_frames: Frames wanted.
        side: Side of the model's square input, pixels.
        split: As for scenes.

    Returns:
        ``num_frames`` frames; streams of all kinds alternately, lossless and JPEG frames at random.

    Raises:
        ConfigError: The streams' frames are not of the model's size.
    """
    frames: list[Frame] = []
    for number in count():
        if len(frames) >= num_frames:
            return frames[:num_frames]
        kind = STREAM_CYCLE[number % len(STREAM_CYCLE)]
        items = make_stream(kind, seed, start + number, _FRAMES_PER_STREAM, encoding="mixed", split=split)
        frames += [as_frame(item, side) for item in items]
    raise AssertionError("unreachable")


def as_frame(item: StreamItem, side: int) -> Frame:
    """Pads a frame to the model's square."""
    if max(item.image.shape[:2]) != side:
        raise ConfigError(
            f"{item.stream}: frames are {item.image.shape[:2]} pixels, the model reads {side}; streams can be trained "
            f"on with image_size {FRAME_SIDE} only"
        )
    questions = tuple(
        (_TEXT_KINDS.get(question, "frame"), question, text) for question, text, _ in item.questions
    )
    return Frame(padded(replace(item.scene, image=item.image), side), questions)


def padded(scene: Scene, side: int) -> Scene:
    """A scene in the middle of a square, masks and boxes with it; the padding belongs to nothing."""
    size = scene.image.shape[:2]
    top, left = centre_padding(size, (side, side))
    inner = slice(top, top + size[0]), slice(left, left + size[1])

    def framed(values: np.ndarray) -> np.ndarray:
        out = np.zeros((side, side, *values.shape[2:]), values.dtype)
        out[inner] = values
        return out

    image = np.empty((side, side, 3), np.uint8)
    image[:] = _PAD_RGB
    image[inner] = scene.image
    shift = np.array([left, top, left, top])
    objects = [
        replace(
            item,
            mask=framed(item.mask),
            box_xyxy=tuple((np.array(item.box_xyxy) + shift).tolist()),
            centre_xy=(item.centre_xy[0] + left, item.centre_xy[1] + top),
        )
        for item in scene.objects
    ]
    stuff = [replace(region, mask=framed(region.mask)) for region in scene.stuff]
    return replace(scene, image=image, objects=tuple(objects), stuff=tuple(stuff))


def frame_turns(frame: Frame, seed: int) -> Iterator[tuple[str, str, str]]:
    """Texts of a frame as (turn kind, prompt, answer): both of its texts, and some of the other questions."""
    others = [question for question in frame.questions if question[0] == "frame"]
    random.Random(seed).shuffle(others)
    yield from (question for question in frame.questions if question[0] != "frame")
    yield from others[:_MOST_QUESTIONS]
