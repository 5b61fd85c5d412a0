"""Which attention heads of an unmodified LMM point at what a phrase names, found without a single mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import cv2
import numpy as np
import torch

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.attention_mask_head import gaussian
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.structures import CaptureSpec, HeadRanking, Phrase, Sample
from flmm_detseg.utils.choices import RANKING_METHODS

# Of the contrast method: rounds of agreement with the best heads' common mask, and how many heads make it. Few heads,
# which point most alike, agree on too little of a thing, many on too much; the mean over group sizes depends least on
# the phrases.
_ROUNDS, _TOGETHER = 2, (6, 8, 10, 12, 14, 16)
# Of the localisation method: heads that each phrase chooses.
_CHOSEN = 10
_SMOOTHING = 0.7


def rank_heads(
    lmm: LMMAdapter, samples: Sequence[Sample], name: str, method: str = "contrast", *, batch_size: int = 8
) -> HeadRanking:
    """Ranks all heads whose rows the LMM reads.

    ``"contrast"``: a head that points at things looks elsewhere when the phrase changes and the image does not. Heads
    are first scored by the Jensen-Shannon divergence of their maps for a right and a wrong phrase, times the root of
    the attention that the image gets. Then the common mask of the best heads, for which each has one vote a cell,
    stands in for the truth, and heads are scored by their IoU with it; twice. The score is the mean over several
    numbers of best heads.

    ``"localisation"``: heads that give the image more than an elbow's attention; each phrase chooses those whose map
    has the least spatial entropy; heads are ranked by how often they were chosen.

    Args:
        lmm: Read as it is.
        samples: One phrase about one image each; masks are not looked at. About 50.
        name: Of the LMM, for the file.
        method: ``"contrast"`` or ``"localisation"``.
        batch_size: Samples in one pass.

    Returns:
        The ranking.

    Raises:
        ConfigError: Unknown method.
        DataError: Too few samples, or all of them have the same phrase.

    Source: Kang et al., CVPR 2025 (arXiv 2503.06287) for ``"localisation"``.
    """
    if method not in RANKING_METHODS:
        raise ConfigError(f"`method` is {method!r}; known: {', '.join(RANKING_METHODS)}")
    if len(samples) < 2:
        raise DataError(f"heads are ranked on {len(samples)} phrases; at least 2 are needed, better 50")
    right = attention_of(lmm, samples, batch_size)
    if method == "localisation":
        scores = localisation_scores(right)
    else:
        contrast = contrast_scores(right, attention_of(lmm, with_wrong_phrases(samples), batch_size))
        scores = np.mean([_agreed(right, contrast, together) for together in _TOGETHER], axis=0)
    labels = list(lmm.attention_pairs)
    order = np.argsort(-scores, kind="stable")
    return HeadRanking(
        lmm=name,
        num_layers=lmm.num_layers,
        num_heads=lmm.facts.num_heads,
        method=method,
        num_phrases=len(samples),
        heads=tuple(labels[channel] for channel in order),
        scores=tuple(round(float(scores[channel]), 6) for channel in order),
    )


def one_phrase_each(records: Iterable[Sample], count: int) -> list[Sample]:
    """Samples of one phrase as the whole text, each about another image.

    Args:
        records: In the order in which they are taken; those without an ``image_id`` show different images.
        count: How many.

    Returns:
        At most ``count`` samples; fewer where the records have fewer images with phrases.
    """
    found: list[Sample] = []
    images: set[str | None] = set()
    for record in records:
        if record.phrases and (record.image_id is None or record.image_id not in images):
            images.add(record.image_id)
            text = record.phrase_text(0)
            phrase = Phrase(((0, len(text)),))
            found.append(
                replace(
                    record, text=text, phrases=(phrase,), masks=None, dense=None, task="phrase", sections=()
                )
            )
            if len(found) == count:
                break
    return found


def with_wrong_phrases(samples: Sequence[Sample]) -> list[Sample]:
    """The same images, each with the phrase of another one.

    Args:
        samples: With one phrase each.

    Returns:
        As many, in the same order.

    Raises:
        DataError: All phrases are the same.
    """
    texts = [sample.text for sample in samples]
    wrong = []
    for index, sample in enumerate(samples):
        later = (other % len(samples) for other in range(index + 1, index + len(samples)))
        other = next((place for place in later if texts[place] != texts[index]), None)
        if other is None:
            raise DataError(f"all phrases are {texts[0]!r}; heads are distinguished by different ones")
        wrong.append(replace(sample, text=texts[other], phrases=samples[other].phrases))
    return wrong


def attention_of(lmm: LMMAdapter, samples: Sequence[Sample], batch_size: int) -> list[np.ndarray]:
    """Attention of each sample's phrase, head by head.

    Args:
        lmm: Read as it is.
        samples: With one phrase each.
        batch_size: Samples in one pass.

    Returns:
        Per sample float32 ``[heads, rows, cols]`` in the order of ``attention_pairs``: the mean over the levels of
        families that have several, padding cut away.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(samples), batch_size):
        items = [lmm.prepare(sample) for sample in samples[start : start + batch_size]]
        with torch.inference_mode():
            stacks = lmm.encode(items, CaptureSpec(attention=True)).attention
        assert stacks is not None  # was asked for
        for item, stack in zip(items, stacks, strict=True):
            rows, cols = item.grid.crop_window(item.grid.output_grid)
            levels = stack[0].float().cpu().unflatten(0, (lmm.facts.num_levels, -1))
            found.append(levels.mean(0)[:, rows, cols].numpy())
    return found


def contrast_scores(right: Sequence[np.ndarray], wrong: Sequence[np.ndarray]) -> np.ndarray:
    """How much a head's map changes with the phrase.

    Args:
        right: Per sample ``[heads, rows, cols]``, read with its own phrase.
        wrong: The same with another phrase.

    Returns:
        float64 ``[heads]``: mean Jensen-Shannon divergence (nats) times the root of the mean attention on the image.
    """
    change = np.mean([_divergence(a, b) for a, b in zip(right, wrong, strict=True)], axis=0)
    return cast(np.ndarray, change * np.sqrt(_mass(right)))


def _agreed(right: Sequence[np.ndarray], scores: np.ndarray, together: int) -> np.ndarray:
    for _ in range(_ROUNDS):
        scores = agreement_scores(right, np.argsort(-scores, kind="stable")[:together])
    return scores


def agreement_scores(stacks: Sequence[np.ndarray], heads: Sequence[int] | np.ndarray) -> np.ndarray:
    """Mean IoU of each head's mask with the common mask of some heads.

    The common mask has the cells that are in more than half as many of these heads' masks as the cell that is in most.
    Masks are counted, not attention: a head that gives a cell or two all it has would decide on a mean of maps alone,
    and heads that look at one corner of a thing would be ranked above those that cover it.

    Args:
        stacks: Per sample ``[heads, rows, cols]``.
        heads: Channels that vote.

    Returns:
        float64 ``[heads]``, in [0, 1].
    """
    total = np.zeros(len(stacks[0]))
    for stack in stacks:
        masks = _mask(_shares(stack))
        votes = masks[np.asarray(heads)].sum(0)
        common = 2 * votes > votes.max()
        total += (masks & common).sum((1, 2)) / np.maximum((masks | common).sum((1, 2)), 1)
    return total / len(stacks)


def localisation_scores(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """How often a head is among those that look at the image in one place.

    Args:
        stacks: Per sample ``[heads, rows, cols]``.

    Returns:
        float64 ``[heads]``: share of the samples that chose it; among equals the lower mean entropy leads.
    """
    mass = _mass(stacks)
    enough = mass >= elbow(mass)
    entropies = np.array([[spatial_entropy(one) for one in stack] for stack in stacks])
    # A head that gives an image nothing looks at no place in it: it is as bad as one place for each cell.
    entropies = np.minimum(entropies, np.log([[max(stack[0].size, 2)] for stack in stacks]))
    chosen = np.zeros(len(mass))
    for row in np.where(enough, entropies, np.inf):
        chosen[np.argsort(row, kind="stable")[: min(_CHOSEN, int(enough.sum()))]] += 1
    mean = entropies.mean(0)
    return cast(np.ndarray, chosen / len(stacks) - 1e-3 * mean / max(float(mean.max()), 1e-12))


def elbow(values: np.ndarray) -> float:
    """Where sorted values begin to rise: the point farthest below the line from the least to the greatest.

    Args:
        values: At least one.

    Returns:
        One of them.
    """
    ordered = np.sort(values)
    span = ordered[-1] - ordered[0]
    if span <= 0:
        return float(ordered[0])
    below = np.linspace(0, 1, len(ordered)) - (ordered - ordered[0]) / span
    return float(ordered[np.argmax(below)])


def spatial_entropy(values: np.ndarray) -> float:
    """Entropy of the areas of the connected places where a map is above its mean; 0 for one place.

    Args:
        values: ``[rows, cols]``.

    Returns:
        Nats; infinite for a map that is the same everywhere.
    """
    bright = (values > values.mean()).astype(np.uint8)
    if not bright.any():
        return float("inf")
    _, labels = cv2.connectedComponents(bright, connectivity=8)
    share = np.bincount(labels.ravel())[1:] / bright.sum()
    return float(-(share * np.log(share)).sum())


def _mass(stacks: Sequence[np.ndarray]) -> np.ndarray:
    return cast(np.ndarray, np.mean([stack.sum((1, 2)) for stack in stacks], axis=0))


def _shares(stack: np.ndarray) -> np.ndarray:
    return stack / np.maximum(stack.sum((1, 2), keepdims=True), 1e-12)


def _divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = _shares(a.astype(np.float64)), _shares(b.astype(np.float64))
    middle = np.maximum((a + b) / 2, 1e-12)
    both = [(one * np.log(np.maximum(one, 1e-12) / middle)).sum((1, 2)) for one in (a, b)]
    return cast(np.ndarray, (both[0] + both[1]) / 2)


def _mask(maps: np.ndarray) -> np.ndarray:
    """Maps ``[n, rows, cols]`` smoothed and cut half-way, as :class:`AttentionMaskHead` does."""
    smooth = gaussian(torch.from_numpy(maps), _SMOOTHING).numpy()
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return cast(np.ndarray, smooth > (low + high) / 2)
