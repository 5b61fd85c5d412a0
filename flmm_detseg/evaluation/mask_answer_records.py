"""Facts of an answer with masks beside what was asked for, as integers: figures do not depend on order or sharding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.datasets.mask_answers import IGNORE_KEY
from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.language.segment_names import MASK_TOKEN, segment_names
from flmm_detseg.ops.masks import mask_areas, pieces
from flmm_detseg.structures import Prediction, Sample

# Facts of `Sample.meta` that figures are given by.
_GROUPS = ("family", "held_out", "absent", "form")
# Most words of a short question.
_SHORT = 10
# What an answer may have in a token's place: other brackets, blanks, letters; cut off at the answer's end; half of it.
_ATTEMPT = re.compile(
    r"[\[<(]\s*/?\s*s\s*e\s*g\b|[\[<(]\s*s(?:\s*e)?\s*$|(?<![\[<(\w/])seg\s*[\])>]", re.IGNORECASE
)


def mask_answer_record(
    sample: Sample,
    text: str,
    prediction: Prediction,
    names: Sequence[str] = (),
    *,
    min_presence: float | None = None,
) -> dict[str, Any]:
    """Compares an answer with what was asked for.

    Pixels of ``sample.meta["ignore"]`` are dropped from targets and predictions.

    Args:
        sample: With T masks (``[T, H, W]``; none where nothing fits the query) and, in ``meta``, what it is grouped by.
        text: The answer with the literal ``[SEG]``.
        prediction: P masks, one for each ``[SEG]`` that was generated, on any device.
        names: What the answer calls each of them; empty where it is not known.
        min_presence: Masks whose presence is lower count as not given; None: all count.

    Returns:
        One plain (JSON-ready) dict: ``record_id``, ``image_id``, ``question``, ``answer``, ``expected`` (the reference
        answer); ``num_targets`` T, ``num_masks`` P, ``num_unparsable`` (of :func:`num_unparsable`); ``target_area``,
        ``area`` and ``intersection`` in pixels of the united masks; ``target_areas`` ``[T]``, ``areas`` ``[P]``,
        ``intersections`` ``[P][T]`` of the single ones; ``scores`` ``[P]``; ``names`` ``[P]`` and ``target_names``
        ``[T]`` where they are known, else empty; ``groups``, a text by group.

    Raises:
        ConfigError: ``min_presence``, and nothing is known of presence.
        DataError: The sample's masks or ignored pixels do not fit it, a fact that answers are grouped by is no word, or
            the prediction is of another record.
        RunError: More masks than ``[SEG]`` in the answer, names of other masks, or logits are NaN.
    """
    size = sample.image_size
    targets = _targets(sample)
    if prediction.record_id != sample.record_id or tuple(prediction.packed.size) != size:
        raise DataError(
            f"{sample.record_id}: the prediction is of record {prediction.record_id!r} with size "
            f"{tuple(prediction.packed.size)}, expected {size}."
        )
    num_read = num = len(prediction.packed)
    num_tokens = text.count(MASK_TOKEN)
    if num > num_tokens or len(names) not in (0, num):
        raise RunError(
            f"{sample.record_id}: {num} masks and {len(names)} names for the {num_tokens} {MASK_TOKEN} of the answer. "
            "The model's head reads tokens that the answer does not have; check its `token`."
        )
    if prediction.mask_maps.maps.isnan().any():
        raise RunError(
            f"{sample.record_id}: the mask logits contain NaN. Check the checkpoint and precision."
        )
    if min_presence is not None and num:
        kept = _present(prediction, min_presence)
        prediction, names = prediction.part(kept), [names[k] for k in kept] if names else ()
        num = len(kept)
    seen = ~_ignored(sample)
    device = prediction.packed.bits.device
    target_masks = torch.from_numpy(targets & seen).to(device)
    counted = torch.from_numpy(seen).to(device)
    united, target_united = torch.zeros_like(counted), target_masks.any(0)
    areas: list[int] = []
    intersections: list[list[int]] = []
    # A few masks at a time: many of full size are large.
    for part in pieces(prediction.packed, size):
        masks = prediction.packed.unpack(part) & counted
        united |= masks.any(0)
        areas += _integers(mask_areas(masks))
        intersections += [_integers(mask_areas(mask & target_masks)) for mask in masks]
    return {
        "record_id": sample.record_id,
        "image_id": sample.image_id or sample.record_id,
        "question": sample.prompt or "",
        "answer": text,
        "expected": sample.text,
        "num_targets": len(targets),
        "num_masks": num,
        "num_unparsable": num_unparsable(text, num_read),
        "target_area": int(target_united.count_nonzero()),
        "area": int(united.count_nonzero()),
        "intersection": int((united & target_united).count_nonzero()),
        "target_areas": _integers(mask_areas(target_masks)),
        "areas": areas,
        "intersections": intersections,
        "scores": [round(score, 6) for score in prediction.scores.tolist()],
        "names": list(names),
        "target_names": _target_names(sample),
        "groups": _groups(sample),
    }


def _present(prediction: Prediction, min_presence: float) -> list[int]:
    """Masks of what is there."""
    if prediction.presence is None:
        raise ConfigError(
            f"{prediction.record_id}: the model has no presence head, so nothing says what is there"
        )
    return (prediction.presence >= min_presence).nonzero()[:, 0].tolist()


def num_unparsable(text: str, num_masks: int) -> int:
    """Places of an answer that look like ``[SEG]`` but gave no mask.

    Args:
        text: The answer.
        num_masks: Masks that it gave.

    Returns:
        Attempts at the token (``<seg>``, ``[ SEG ]``, ``seg]``, one that is cut off at the end), and tokens that were
        spelled in letters or have no mask.
    """
    exact = text.count(MASK_TOKEN)
    return len(_ATTEMPT.findall(text.replace(MASK_TOKEN, " "))) + max(0, exact - num_masks)


def _targets(sample: Sample) -> np.ndarray:
    """Bool ``[T, H, W]``; T is 0 where nothing fits the query."""
    size, num = sample.image_size, len(sample.phrases)
    if sample.masks is None and num:
        raise DataError(f"{sample.record_id}: it has no masks to evaluate against.")
    masks = np.zeros((0, *size), dtype=bool) if sample.masks is None else sample.masks
    if masks.shape != (num, *size):
        raise DataError(f"{sample.record_id}: masks have shape {masks.shape}, expected {(num, *size)}.")
    return masks


def _target_names(sample: Sample) -> list[str]:
    """What the data set, else the reference answer, calls each target; empty where it names none."""
    known = [str(name) for name in sample.meta.get("names") or ()]
    if len(known) == len(sample.phrases):
        return known
    spans = [phrase.spans[0] for phrase in sample.phrases]
    named = segment_names(sample.text, spans)
    return named if any(named) else []


def _ignored(sample: Sample) -> np.ndarray:
    """Bool ``[H, W]``."""
    ignored = sample.meta.get(IGNORE_KEY)
    if ignored is None:
        return np.zeros(sample.image_size, dtype=bool)
    ignored = np.asarray(ignored)
    if ignored.dtype != bool or ignored.shape != sample.image_size:
        raise DataError(
            f"{sample.record_id}: `meta[{IGNORE_KEY!r}]` is {ignored.dtype} {ignored.shape}, "
            f"expected bool {sample.image_size}."
        )
    return ignored


def _groups(sample: Sample) -> dict[str, str]:
    meta: Mapping[str, Any] = sample.meta
    groups = {key: _word(sample, key) for key in _GROUPS if key in meta}
    if "is_sentence" in meta:
        groups["query"] = "long" if meta["is_sentence"] else "short"
        # Where all are sentences, as TinyWorld's: by their words.
        words = len(str(meta.get("query") or sample.prompt or "").split())
        groups["words"] = f"up_to_{_SHORT}" if words <= _SHORT else "more"
    return {**groups, "targets": ("none", "one", "several")[min(len(sample.phrases), 2)]}


def _word(sample: Sample, key: str) -> str:
    value = sample.meta[key]
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int):
        raise DataError(
            f"{sample.record_id}: `meta[{key!r}]` is a {type(value).__name__}; an answer belongs to one group, so give "
            "one word"
        )
    return str(value)


def _integers(values: Tensor) -> list[int]:
    return [int(value) for value in values.tolist()]
