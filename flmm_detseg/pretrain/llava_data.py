"""Training data of the tiny LLaVA: TinyWorld scenes as token turns, cached, packed behind one image prefix.

A scene becomes one sequence: the image prefix ``<s> USER : <image> x N`` followed by several turns (caption,
caption with boxes, referring sentences, questions). The 4-D mask hides the turns from each other and the positions
of every turn restart behind the prefix, so each turn is computed exactly as if it stood alone behind the image.
"""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
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
from flmm_detseg.pretrain.tiny_llava import BOX_PROMPT, BOXED_CAPTION_PROMPT, CAPTION_PROMPT, TinyLlavaSizes

QUESTION_KINDS = ("colour", "kind", "presence", "count", "position", "box", "comparison")
TURN_KINDS = ("caption", "boxed_caption", "refer", "where", *QUESTION_KINDS)
SIZE_WORDS = ("small", "large")
LABEL_GROUPS = ("name", "colour", "texture", "size", "x1", "y1", "x2", "y2", "is_centre")
NUM_COORDINATES = 100
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@dataclass(frozen=True)
class Chunk:
    """Some hundred scenes, tokenised.

    Attributes:
        images: ``[S, H, W, 3]`` uint8.
        labels: ``[S, patches, len(LABEL_GROUPS)]`` int16; classes of the patch, -100 where a group does not
            apply.
        tokens: All turns one behind the other, int16.
        turns: ``[T, 4]`` int32: scene, start in ``tokens``, length, length of the prompt part.
        kinds: ``[T]`` int16, index into ``TURN_KINDS``.
    """

    images: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    turns: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class PackedBatch:
    """One training batch.

    Attributes:
        pixel_values: ``[B, 3, H, W]`` float32, CLIP-normalised.
        text_ids: ``[B, L]`` int64, the packed turns (padded with ``pad``), without the prefix.
        position_ids: ``[B, P + L]`` int64; every turn restarts at P, the length of the prefix.
        attention_bias: ``[B, 1, L, P + L]`` float32, 0 where a row of the turns may look, a large negative
            number elsewhere; the rows of the prefix are plain causal.
        targets: ``[B, L]`` int64, token that the position *before* should predict; -100 where not supervised.
        weights: ``[B, L]`` float32, weight of each target.
        labels: ``[B, patches, len(LABEL_GROUPS)]`` int64.
    """

    pixel_values: Tensor
    text_ids: Tensor
    position_ids: Tensor
    attention_bias: Tensor
    targets: Tensor
    weights: Tensor
    labels: Tensor


def turn_text(prompt: str, answer: str) -> tuple[str, str]:
    """The two parts of a turn behind the image: ``{question} ASSISTANT:`` and the answer with ``</s>``."""
    return f"{prompt} ASSISTANT:", f"{answer}</s>"


def prefix_ids(tokenizer: PreTrainedTokenizerFast, num_patches: int) -> list[int]:
    """Tokens of ``<s>USER: <image>`` with the image token repeated once per patch."""
    head = tokenizer("USER:").input_ids
    return head + [tokenizer.convert_tokens_to_ids("<image>")] * num_patches


def boxed_caption(caption: GroundedText, scene: Scene) -> str:
    """Puts the box of its object behind every phrase that names exactly one object."""
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
        told = [expressions[(position + step) % len(expressions)] for step in range(rng.choice((1, 1, 2, 3)))]
        # Whether a box follows is left open, so the sentence's own tokens have to find the object either way.
        parts = [f"{e.text} {boxes[e.object_id]}" if rng.random() < 0.65 else e.text for e in told]
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
    tokenizer: PreTrainedTokenizerFast, seed: int, start: int, count: int, sizes: TinyLlavaSizes
) -> Chunk:
    """Makes scenes ``start .. start + count - 1`` of the training split and tokenises their turns."""
    images, labels, kinds, owners, prompts, answers = [], [], [], [], [], []
    for index in range(start, start + count):
        scene = make_scene(seed, index, "train", (sizes.image_size, sizes.image_size))
        images.append(scene.image)
        labels.append(patch_labels(scene, sizes.patch_size))
        for kind, prompt, answer in scene_turns(scene, seed * 1_000_003 + index):
            first, second = turn_text(prompt, answer)
            kinds.append(TURN_KINDS.index(kind))
            owners.append(index - start)
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
    root: str | Path, tokenizer: PreTrainedTokenizerFast, seed: int, sizes: TinyLlavaSizes
) -> Path:
    """Folder of the chunks that belong to this world version, vocabulary, seed and image size."""
    words = sorted(tokenizer.get_vocab().items())
    key = f"{TINYWORLD_VERSION}|{seed}|{sizes.image_size}|{sizes.patch_size}|{words}"
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
) -> None:
    """Writes the missing ones of the given chunks; whole files appear at once."""
    os.nice(10)  # Training must not wait for scenes it does not need yet
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = chunk_path(folder, number)
        if path.exists():
            continue
        chunk = build_chunk(tokenizer, seed, number * chunk_size, chunk_size, sizes)
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
) -> mp.process.BaseProcess:
    """Starts the background process that fills the cache (ends with its parent)."""
    process = mp.get_context("spawn").Process(
        target=write_chunks, args=(folder, tokenizer, seed, range(num_chunks), chunk_size, sizes), daemon=True
    )
    process.start()
    return process


def read_chunk(path: Path) -> Chunk:
    """Reads one chunk."""
    with np.load(path, allow_pickle=False) as arrays:
        return Chunk(**{name: arrays[name] for name in arrays.files})


def pick_turns(kinds: np.ndarray, rng: np.random.Generator, extra: Sequence[str]) -> np.ndarray:
    """Chooses the turns of one visit of a scene.

    One caption (plain or with boxes), three referring sentences (mostly with their box), one question of every
    kind and one more of the kinds in ``extra``.

    Args:
        kinds: ``[T]`` turn kinds of the scene.
        rng: Source of the choice.
        extra: Question kinds that deserve a second item.

    Returns:
        Indices into ``kinds``.
    """
    plan = [("caption", 1) if rng.random() < 0.5 else ("boxed_caption", 1)]
    plan += [("refer", 2), ("where", 1)]
    plan += [(kind, 1 + (kind in extra)) for kind in QUESTION_KINDS]
    chosen = []
    for kind, wanted in plan:
        candidates = np.flatnonzero(kinds == TURN_KINDS.index(kind))
        if len(candidates):
            chosen.append(rng.choice(candidates, min(wanted, len(candidates)), replace=False))
    return np.concatenate(chosen)


def turn_weights(kind: str, tokens: np.ndarray, prompt_length: int, is_coordinate: np.ndarray) -> np.ndarray:
    """Loss weight of every token of a turn, ``[len(tokens)]`` float32; prompts have none.

    Short answers count three-fold, or the long captions would drown them. The words of referring sentences count
    little (their boxes fully) and the first word nothing, so that a free-running description stays a caption.
    """
    weights = np.zeros(len(tokens), np.float32)
    weights[prompt_length:] = 1.0
    if kind == "refer":
        weights[prompt_length:] = np.where(is_coordinate[tokens[prompt_length:]], 1.0, 0.2)
        weights[prompt_length] = 0.0
    elif kind in QUESTION_KINDS and kind != "box":
        weights[prompt_length:-1] = 3.0
    weights[-1] = min(weights[-1], 0.3)
    return weights


def normalise_images(images: np.ndarray) -> Tensor:
    """CLIP preprocessing without resizing: ``[B, H, W, 3]`` uint8 to ``[B, 3, H, W]`` float32."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255.0)
    return (pixels - CLIP_MEAN) / CLIP_STD


def pack(
    turns: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    images: np.ndarray,
    labels: np.ndarray,
    prefix_length: int,
    pad_id: int,
) -> PackedBatch:
    """Packs the turns of several scenes into one batch.

    Args:
        turns: Per scene its turns as (tokens ``[n]``, weights ``[n]``).
        images: ``[B, H, W, 3]`` uint8.
        labels: ``[B, patches, len(LABEL_GROUPS)]``.
        prefix_length: P, tokens before the first turn.
        pad_id: Token that fills up.
    """
    lengths = [sum(len(tokens) for tokens, _ in scene) for scene in turns]
    longest = -(-max(lengths) // 8) * 8
    total = prefix_length + longest
    ids = torch.full((len(turns), longest), pad_id)
    weights = torch.zeros(len(turns), longest)
    positions = torch.arange(prefix_length).repeat(len(turns), 1)
    positions = torch.cat([positions, torch.full((len(turns), longest), prefix_length)], 1)
    # 0: prefix (seen by all), 1..: turns; padding gets a turn of its own and so sees itself and the prefix.
    owner = torch.zeros(len(turns), total, dtype=torch.long)
    for row, scene in enumerate(turns):
        cursor = 0
        for number, (tokens, weight) in enumerate(scene, start=1):
            stop = cursor + len(tokens)
            ids[row, cursor:stop] = torch.from_numpy(tokens.astype(np.int64))
            weights[row, cursor:stop] = torch.from_numpy(weight)
            owner[row, prefix_length + cursor : prefix_length + stop] = number
            positions[row, prefix_length + cursor : prefix_length + stop] += torch.arange(len(tokens))
            cursor = stop
        owner[row, prefix_length + cursor :] = len(scene) + 1
    visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, prefix_length:, None])
    visible &= torch.ones(total, total, dtype=torch.bool).tril()[prefix_length:]
    bias = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
    return PackedBatch(
        pixel_values=normalise_images(images),
        text_ids=ids,
        position_ids=positions,
        attention_bias=bias[:, None],
        targets=ids.masked_fill(weights == 0, -100),
        weights=weights,
        labels=torch.from_numpy(labels.astype(np.int64)),
    )


class PackedStream:
    """Endless packed batches from the chunks that exist; new chunks join as the writer finishes them."""

    def __init__(
        self,
        folder: Path,
        *,
        num_chunks: int,
        batch_size: int,
        prefix_length: int,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        extra: Sequence[str] = ("count", "comparison"),
    ) -> None:
        self.folder, self.num_chunks, self.batch_size = folder, num_chunks, batch_size
        self.prefix_length, self.pad_id, self.extra = prefix_length, tokenizer.pad_token_id, tuple(extra)
        coordinates = [f"{10 * value:03d}" for value in range(NUM_COORDINATES)]
        self.is_coordinate = np.zeros(len(tokenizer), bool)
        self.is_coordinate[tokenizer.convert_tokens_to_ids(coordinates)] = True
        self.rng = np.random.default_rng(seed)
        self.chunks: list[Chunk] = []

    def refresh(self) -> int:
        """Loads chunks that have appeared; returns how many scenes are there."""
        while len(self.chunks) < self.num_chunks and chunk_path(self.folder, len(self.chunks)).exists():
            self.chunks.append(read_chunk(chunk_path(self.folder, len(self.chunks))))
        return sum(len(chunk.images) for chunk in self.chunks)

    def sample_scene(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
        """Draws one scene and its turns: (turns, image, labels)."""
        chunk = self.chunks[self.rng.integers(len(self.chunks))]
        scene = int(self.rng.integers(len(chunk.images)))
        low, high = np.searchsorted(chunk.turns[:, 0], (scene, scene + 1))
        turns = []
        for index in low + pick_turns(chunk.kinds[low:high], self.rng, self.extra):
            _, start, length, prompt_length = chunk.turns[index]
            kind = TURN_KINDS[chunk.kinds[index]]
            tokens = chunk.tokens[start : start + length]
            turns.append((tokens, turn_weights(kind, tokens, prompt_length, self.is_coordinate)))
        return turns, chunk.images[scene], chunk.labels[scene]

    def __iter__(self) -> Iterator[PackedBatch]:
        """Yields batches for ever; looks for new chunks every 50 batches."""
        count = 0
        while True:
            if count % 50 == 0:
                self.refresh()
            count += 1
            drawn = [self.sample_scene() for _ in range(self.batch_size)]
            turns, images, labels = zip(*drawn)
            yield pack(turns, np.stack(images), np.stack(labels), self.prefix_length, self.pad_id)
