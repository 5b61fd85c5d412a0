"""Queries, answers and predictions of hand-made masks, for the tests of answers with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fake_predictions import make_prediction

from flmm_detseg.structures import Phrase, Prediction, Sample

SIZE = (10, 10)


def rows(*numbers: int, width: int = SIZE[1]) -> np.ndarray:
    """A mask of whole rows, or of their first ``width`` pixels."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[list(numbers), :width] = True
    return mask


def query(record_id: str, targets: Sequence[np.ndarray], size: tuple[int, int] = SIZE, **meta: Any) -> Sample:
    """A record of task "reasoning" with a ``[SEG]`` for each target."""
    text = (
        " and ".join(f"the thing {number} [SEG]" for number in range(len(targets)))
        or "there is no such thing ."
    )
    starts = [place for place in range(len(text)) if text.startswith("[SEG]", place)]
    return Sample(
        record_id,
        np.zeros((*size, 3), np.uint8),
        text,
        tuple(Phrase(((start, start + 5),)) for start in starts),
        np.array(targets, dtype=bool).reshape(-1, *size),
        prompt="which thing ?",
        task="reasoning",
        meta=meta,
    )


def masks_of(
    record_id: str,
    masks: Sequence[np.ndarray],
    size: tuple[int, int] = SIZE,
    scores: Sequence[float] | None = None,
) -> Prediction:
    """A prediction of exactly these masks."""
    stack = np.array(masks, dtype=bool).reshape(-1, *size)
    logits = torch.from_numpy(np.where(stack, 3.0, -3.0)).float()
    prediction = make_prediction(record_id, logits, logits.clone(), size)
    return prediction if scores is None else replace(prediction, scores=torch.tensor(scores))
