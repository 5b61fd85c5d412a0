"""What a SAM is prompted with: text and coarse masks of phrases, cut into calls and put into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flmm_detseg.ops.masks import above, resize_maps


class TextPrompt(NamedTuple):
    """Text tokens of the phrases of one sample, already in the prompt space.

    Attributes:
        tokens: ``[P, D]``.
        phrase_ids: int64 ``[P]``, phrase of each token.
    """

    tokens: Tensor
    phrase_ids: Tensor


class MaskPrompt(NamedTuple):
    """SAM's prompts from the coarse masks of one image.

    Attributes:
        mask_logits: float32 ``[K, 1, 4e, 4e]`` over SAM's square.
        boxes_xyxy: float32 ``[K, 4]`` in pixels of that square, no gradient.
    """

    mask_logits: Tensor
    boxes_xyxy: Tensor


class PointPrompt(NamedTuple):
    """Points that people set, of N prompts.

    Attributes:
        xy: float32 ``[N, P, 2]`` in pixels of SAM's square.
        labels: int64 ``[N, P]``: 1 lies in what is meant, 0 does not.
    """

    xy: Tensor
    labels: Tensor


def coarse_masks(logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks at image size, bool ``[K, H, W]``: probabilities are enlarged, then cut at a half.

    Args:
        logits: float32 ``[K, h, w]`` covering the image.
        image_size: ``(H, W)``.

    Returns:
        True where the enlarged probability is above a half.
    """
    return above(resize_maps(logits.detach().sigmoid(), image_size), 0.5)


def padding_logit(logits: Tensor) -> float:
    """Not above any mask of the image, and clearly background: the padding never looks like an object."""
    return min(-1.0, float(logits.detach().float().min())) if logits.numel() else -1.0


def calls_of(counts: Sequence[int], limit: int | None) -> list[list[tuple[int, slice]]]:
    """Cuts the phrases of a batch into calls.

    Args:
        counts: Phrases per sample.
        limit: Most phrases in a call; None for one call.

    Returns:
        Per call the samples and which of their phrases; samples without phrases are in none.
    """
    places = [(index, phrase) for index, count in enumerate(counts) for phrase in range(count)]
    size = limit or len(places)
    calls = []
    for start in range(0, len(places), size):
        chosen: dict[int, list[int]] = {}
        for index, phrase in places[start : start + size]:
            chosen.setdefault(index, []).append(phrase)
        calls.append([(index, slice(found[0], found[-1] + 1)) for index, found in chosen.items()])
    return calls


def text_of(prompt: TextPrompt, part: slice) -> TextPrompt:
    """The text of some phrases, counted from 0."""
    inside = (prompt.phrase_ids >= part.start) & (prompt.phrase_ids < part.stop)
    return TextPrompt(prompt.tokens[inside], prompt.phrase_ids[inside] - part.start)


def pad_text(text: Sequence[TextPrompt], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Text tokens of a batch, one padded row per phrase.

    Args:
        text: Per sample.
        counts: Phrases per sample, K_i.

    Returns:
        Tokens ``[sum K_i, T, D]`` (zeros at padding; order of the tokens kept) and bool mask ``[sum K_i,
        T]``.
    """
    tokens = torch.cat([prompt.tokens for prompt in text])
    device = tokens.device
    offsets = torch.tensor([0, *counts], device=device).cumsum(0)
    owners = torch.cat([prompt.phrase_ids.to(device) + offset for prompt, offset in zip(text, offsets)])
    members = owners == torch.arange(sum(counts), device=device)[:, None]
    lengths = members.sum(1)
    longest = int(lengths.max()) if len(owners) else 0
    position = members.cumsum(1).gather(0, owners[None])[0] - 1
    padded = tokens.new_zeros(sum(counts), longest, tokens.shape[-1])
    padded = padded.index_put((owners, position), tokens)
    return padded, torch.arange(longest, device=device) < lengths[:, None]
