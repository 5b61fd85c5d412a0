"""Confidence of items from the log-probabilities of the tokens that spell them.

Text has no scores, but average precision needs them: a constant one makes it depend on the order of the boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.items import JointAnswer
from flmm_detseg.language.parse import ParsedAnswer

Reduce = Literal["mean", "product", "min"]
_REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {"mean": np.mean, "product": np.sum, "min": np.min}


def token_log_probs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probability of each token under the logits that produced it.

    Args:
        logits: ``[T, V]``; row t is what token t was chosen from (already shifted).
        token_ids: int64 ``[T]``.

    Returns:
        float32 ``[T]``.
    """
    chosen = logits.gather(-1, token_ids[:, None]).squeeze(-1).float()
    return chosen - torch.logsumexp(logits.float(), dim=-1)


def span_confidence(
    log_probs: Tensor,
    token_offsets: Sequence[tuple[int, int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    reduce: Reduce = "mean",
) -> list[float | None]:
    """Probability of the tokens that touch some characters.

    ``mean`` (default): ``exp(mean log p)``, the geometric mean, independent of how many digits or tokens a box takes.
    ``product``: the probability of the whole item; punishes items of many tokens. ``min``: the least certain token.

    Args:
        log_probs: ``[T]``, log-probability of each token of the text.
        token_offsets: T half-open character spans, in rising order; an empty span is a token without characters.
        spans: For each item its character spans, in rising order.
        reduce: How token probabilities become one.

    Returns:
        For each item a probability, or None where no token touches its characters.

    Raises:
        ConfigError: Unknown ``reduce``.
        DataError: Numbers of log-probabilities and offsets differ, or offsets do not rise.
    """
    if reduce not in _REDUCTIONS:
        raise ConfigError(f"reduce is {reduce!r}; use 'mean', 'product' or 'min'")
    offsets = np.asarray(token_offsets, dtype=np.int64).reshape(-1, 2)
    values = log_probs.detach().double().cpu().numpy()
    if values.shape != (len(offsets),):
        raise DataError(f"{len(offsets)} token offsets for log-probabilities of shape {tuple(values.shape)}")
    visible = np.flatnonzero(offsets[:, 0] < offsets[:, 1])
    starts, ends = offsets[visible].T
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise DataError("token offsets must rise along the text; are they offsets of this text?")
    scores: list[float | None] = []
    for item in spans:
        # Tokens first..last-1 are those that end after the span begins and begin before it ends.
        ranges = [(np.searchsorted(ends, a, "right"), np.searchsorted(starts, b, "left")) for a, b in item]
        touched = sorted({int(token) for first, last in ranges for token in range(first, last)})
        chosen = values[visible[touched]]
        if not len(chosen):
            scores.append(None)
        else:
            scores.append(float(np.exp(_REDUCTIONS[reduce](chosen))))
    return scores


def score_detections(
    parsed: ParsedAnswer,
    log_probs: Tensor,
    token_offsets: Sequence[tuple[int, int]],
    reduce: Reduce = "mean",
) -> JointAnswer:
    """The parsed answer with a score for each box, from the tokens of its four numbers (brackets and commas excluded).

    Args:
        parsed: From the generated text.
        log_probs: ``[T]``, see :func:`token_log_probs`.
        token_offsets: Character span of each generated token in that text.
        reduce: See :func:`span_confidence`.

    Returns:
        The answer; a box none of whose characters belongs to a token (they were not passed) keeps score None.
    """
    if parsed.answer.detections is None:
        return parsed.answer
    spans = [span.values for span in parsed.detection_spans]
    scores = span_confidence(log_probs, token_offsets, spans, reduce)
    boxes = tuple(replace(box, score=score) for box, score in zip(parsed.answer.detections, scores))
    return replace(parsed.answer, detections=boxes)
