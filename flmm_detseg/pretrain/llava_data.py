"""Training data of the tiny LLaVA: TinyWorld scenes as token turns, packed after one image prefix.

A scene becomes one sequence: the image prefix ``<s> USER : <image> x N`` followed by several turns (caption,
caption with boxes, referring sentences, questions). The 4-D mask hides the turns from each other and the positions
of every turn restart after the prefix, so each turn is computed exactly as if it stood alone after the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flmm_detseg.pretrain.llava_chunks import QUESTION_KINDS, TURN_KINDS, Chunk, chunk_path, read_chunk
from flmm_detseg.pretrain.llava_frames import FRAME_KINDS
from flmm_detseg.pretrain.llava_reason import REASON_KINDS, TURNS_A_VISIT

NUM_COORDINATES = 100
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


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


def pick_turns(kinds: np.ndarray, rng: np.random.Generator, extra: Sequence[str]) -> np.ndarray:
    """Chooses the turns of one visit of a scene.

    Of a scene: one caption (plain or with boxes), three referring sentences (mostly with their box), one question of
    every kind and one more of the kinds in ``extra``, and texts of the reasoning set where it has such. Of a frame of
    a stream: its texts and eight other questions.

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
    # A scene has none of these kinds, a frame none of those above.
    plan += [("clock", 1), ("score", 1), ("frame", 8)]
    plan += TURNS_A_VISIT.items()
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
    elif kind in (*QUESTION_KINDS, *FRAME_KINDS, *REASON_KINDS) and kind != "box":
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

    Returns:
        One row per scene, padded; targets are -100 outside of what is learned.
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
        """Yields batches without end; looks for new chunks every 50 batches."""
        count = 0
        while True:
            if count % 50 == 0:
                self.refresh()
            count += 1
            drawn = [self.sample_scene() for _ in range(self.batch_size)]
            turns, images, labels = zip(*drawn)
            yield pack(turns, np.stack(images), np.stack(labels), self.prefix_length, self.pad_id)
