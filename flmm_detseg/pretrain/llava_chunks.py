"""Texts and labels of TinyWorld scenes for the tiny LLaVA, tokenised and cached in chunks."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from flmm_detseg.datasets.tinyworld import (
    COLOURS,
    KINDS,
    STUFF,
    TEXTURES,
    TINYWORLD_VERSION,
    GroundedText,
    Scene,
    format_box,
    make_questions,
    make_scene,
    narrate,
    referring_expressions,
)
from flmm_detseg.pretrain.llava_frames import FRAME_KINDS, frame_turns, stream_frames
from flmm_detseg.pretrain.llava_reason import REASON_KINDS, reason_turns
from flmm_detseg.pretrain.settings import TinyLlavaSizes
from flmm_detseg.pretrain.tiny_llava import BOX_PROMPT, BOXED_CAPTION_PROMPT, CAPTION_PROMPT

QUESTION_KINDS = ("colour", "kind", "presence", "count", "position", "box", "comparison")
TURN_KINDS = ("caption", "boxed_caption", "refer", "where", *QUESTION_KINDS, *FRAME_KINDS, *REASON_KINDS)
SIZE_WORDS = ("small", "large")
LABEL_GROUPS = ("name", "colour", "texture", "size", "x1", "y1", "x2", "y2", "is_centre")


@dataclass(frozen=True)
class Chunk:
    """Some hundred scenes, tokenised.

    Attributes:
        images: ``[S, H, W, 3]`` uint8.
        labels: ``[S, patches, len(LABEL_GROUPS)]`` int16; classes of the patch, -100 where a group does not
            apply.
        tokens: All turns one after the other, int16.
        turns: ``[T, 4]`` int32: scene, start in ``tokens``, length, length of the prompt part.
        kinds: ``[T]`` int16, index into ``TURN_KINDS``.
    """

    images: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    turns: np.ndarray
    kinds: np.ndarray


def turn_text(prompt: str, answer: str) -> tuple[str, str]:
    """The two parts of a turn after the image: ``{question} ASSISTANT:`` and the answer with ``</s>``."""
    return f"{prompt} ASSISTANT:", f"{answer}</s>"


def prefix_ids(tokenizer: PreTrainedTokenizerFast, num_patches: int) -> list[int]:
    """Tokens of ``<s>USER: <image>`` with the image token repeated once per patch."""
    head = tokenizer("USER:").input_ids
    return head + [tokenizer.convert_tokens_to_ids("<image>")] * num_patches


def boxed_caption(caption: GroundedText, scene: Scene) -> str:
    """Puts the box of its object after every phrase that names exactly one object."""
    size = scene.image.shape[:2]
    boxes = {item.object_id: format_box(item.box_xyxy, size) for item in scene.objects}
    inserts = [
        (max(end for _, end in phrase.spans), boxes[phrase.object_ids[0]])
        for phrase in caption.phrases
        if phrase.is_thing and len(phrase.object_ids) == 1
    ]
    text = caption.text
    for end, box in sorted(inserts, reverse=True):
        text = f"{text[:end]} {box}{text[end:]}"
    return text


def scene_turns(scene: Scene, seed: int) -> list[tuple[str, str, str]]:
    """All texts of a scene as (turn kind, prompt, answer); deterministic in ``seed``."""
    rng = random.Random(seed)
    size = scene.image.shape[:2]
    boxes = {item.object_id: format_box(item.box_xyxy, size) for item in scene.objects}
    turns = []
    for variant in range(2):
        caption = narrate(scene, seed + variant)
        turns.append(("caption", CAPTION_PROMPT, caption.text))
        turns.append(("boxed_caption", BOXED_CAPTION_PROMPT, boxed_caption(caption, scene)))
    expressions = list(referring_expressions(scene, seed))
    rng.shuffle(expressions)
    for position, item in enumerate(expressions):
        turns.append(("where", BOX_PROMPT.format(expression=item.text), boxes[item.object_id]))
        chosen = [
            expressions[(position + step) % len(expressions)] for step in range(rng.choice((1, 1, 2, 3)))
        ]
        # Whether a box follows is left open, so the sentence's own tokens have to find the object either way.
        parts = [f"{e.text} {boxes[e.object_id]}" if rng.random() < 0.65 else e.text for e in chosen]
        turns.append(("refer", CAPTION_PROMPT, f"{' . '.join(parts)} ."))
    for question in make_questions(scene, seed, per_kind=3):
        turns.append((question.kind, question.text, question.answer))
    return turns


def patch_labels(scene: Scene, patch_size: int) -> np.ndarray:
    """Classes of every patch from the masks (vision warm-up): ``[patches, len(LABEL_GROUPS)]`` int16.

    A patch belongs to the object that covers most of it if that is at least 30 %, else to its main stuff.
    """
    height, width = scene.image.shape[:2]
    rows, cols = height // patch_size, width // patch_size
    names = (*KINDS, *STUFF)

    def cover(mask: np.ndarray) -> np.ndarray:
        return mask.reshape(rows, patch_size, cols, patch_size).mean((1, 3)).reshape(-1)

    labels = np.full((rows * cols, len(LABEL_GROUPS)), -100, np.int16)
    if scene.stuff:
        stuff = np.stack([cover(region.mask) for region in scene.stuff])
        stuff_names = np.array([names.index(region.name) for region in scene.stuff], np.int16)
        labels[:, 0] = np.where(stuff.max(0) > 0.3, stuff_names[stuff.argmax(0)], -100)
    labels[:, -1] = 0
    if not scene.objects:
        return labels
    things = np.stack([cover(item.mask) for item in scene.objects])
    attributes = np.array(
        [
            [
                names.index(item.kind),
                tuple(COLOURS).index(item.colour),
                TEXTURES.index(item.texture),
                SIZE_WORDS.index(item.size),
                *(int(word) // 10 for word in format_box(item.box_xyxy, (height, width)).split()),
            ]
            for item in scene.objects
        ],
        np.int16,
    )
    covered = things.max(0) >= 0.3
    labels[covered, :-1] = attributes[things.argmax(0)[covered]]
    for item in scene.objects:
        x, y = (int(value) // patch_size for value in item.centre_xy)
        labels[y * cols + x, -1] = 1
    return labels


def build_chunk(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    start: int,
    count: int,
    sizes: TinyLlavaSizes,
    stream_share: float = 0.0,
    reason: bool = False,
) -> Chunk:
    """Makes images ``start .. start + count - 1`` of the training split and tokenises their turns.

    The last ones, ``stream_share`` of them, are frames of streams; the others are scenes, with ``reason`` asked more.
    """
    images, labels, kinds, owners, prompts, answers = [], [], [], [], [], []
    num_frames = round(stream_share * count)
    side = sizes.image_size
    scenes = [
        make_scene(seed, index, "train", (side, side)) for index in range(start, start + count - num_frames)
    ]
    shown = [
        (scene, scene_turns(scene, seed * 1_000_003 + start + place)) for place, scene in enumerate(scenes)
    ]
    if reason:
        shown = [
            (scene, turns + reason_turns(scene, seed * 1_000_003 + start + place))
            for place, (scene, turns) in enumerate(shown)
        ]
    for frame in stream_frames(seed, start, num_frames, side):
        shown.append((frame.scene, list(frame_turns(frame, start + len(shown)))))
    for owner, (scene, turns) in enumerate(shown):
        images.append(scene.image)
        labels.append(patch_labels(scene, sizes.patch_size))
        for kind, prompt, answer in turns:
            first, second = turn_text(prompt, answer)
            kinds.append(TURN_KINDS.index(kind))
            owners.append(owner)
            prompts.append(first)
            answers.append(second)
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    answer_ids = tokenizer(answers, add_special_tokens=False).input_ids
    lengths = np.array([[len(p) + len(a), len(p)] for p, a in zip(prompt_ids, answer_ids)])
    starts = np.concatenate([[0], np.cumsum(lengths[:-1, 0])])
    flat = [token for p, a in zip(prompt_ids, answer_ids) for token in (*p, *a)]
    return Chunk(
        images=np.stack(images),
        labels=np.stack(labels),
        tokens=np.array(flat, np.int16),
        turns=np.column_stack([owners, starts, lengths]).astype(np.int32),
        kinds=np.array(kinds, np.int16),
    )


def cache_folder(
    root: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    sizes: TinyLlavaSizes,
    stream_share: float = 0.0,
    reason: bool = False,
) -> Path:
    """Folder of the chunks that belong to this world version, vocabulary, seed, image size and share of frames."""
    words = sorted(tokenizer.get_vocab().items())
    key = f"{TINYWORLD_VERSION}|{seed}|{sizes.image_size}|{sizes.patch_size}|{stream_share}|{words}"
    key += "|reason" if reason else ""
    return Path(root) / f"llava_chunks_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def chunk_path(folder: Path, number: int) -> Path:
    """File of one chunk."""
    return folder / f"chunk_{number:05d}.npz"


def write_chunks(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    numbers: Sequence[int],
    chunk_size: int,
    sizes: TinyLlavaSizes,
    stream_share: float = 0.0,
    reason: bool = False,
) -> None:
    """Writes the missing ones of the given chunks; whole files appear at once."""
    os.nice(10)  # Training must not wait for scenes it does not need yet
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = chunk_path(folder, number)
        if path.exists():
            continue
        chunk = build_chunk(tokenizer, seed, number * chunk_size, chunk_size, sizes, stream_share, reason)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(temporary, **vars(chunk))
        temporary.replace(path)


def start_chunk_writer(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    num_chunks: int,
    chunk_size: int,
    sizes: TinyLlavaSizes,
    stream_share: float = 0.0,
    reason: bool = False,
) -> mp.process.BaseProcess:
    """Starts the background process that fills the cache (ends with its parent)."""
    process = mp.get_context("spawn").Process(
        target=write_chunks,
        args=(folder, tokenizer, seed, range(num_chunks), chunk_size, sizes, stream_share, reason),
        daemon=True,
    )
    process.start()
    return process


def read_chunk(path: Path) -> Chunk:
    """Reads one chunk."""
    with np.load(path, allow_pickle=False) as arrays:
        return Chunk(**{name: arrays[name] for name in arrays.files})
