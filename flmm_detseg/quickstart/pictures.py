"""Pictures of what the quickstart trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Prediction, Sample
from flmm_detseg.visualization import draw_attention_heads, draw_comparison, draw_grounding, draw_loss_curves
from flmm_detseg.visualization.canvas import hstack, with_title


def draw_all(
    models: Mapping[str, GroundingLMM], samples: Mapping[str, list[Sample]], work_dirs: Mapping[str, Path]
) -> dict[str, dict[str, np.ndarray]]:
    """Draws the report's pictures.

    Args:
        models: ``trained`` and ``control``.
        samples: ``png`` (captions) and ``refcoco`` (referring expressions), two each at least.
        work_dirs: Label -> folder of its training.

    Returns:
        Per section title its pictures: caption -> RGB uint8.
    """
    trained, control = models["trained"], models["control"]
    found = {kind: list(zip(entries, predict(trained, entries))) for kind, entries in samples.items()}
    kinds = {"png": "phrases of a caption", "refcoco": "a referring expression"}
    overlays = {
        f"{kinds[kind]} ({sample.record_id})": overlay(sample, prediction)
        for kind, pairs in found.items()
        for sample, prediction in pairs
    }
    heads = {
        f"{s.record_id}: {s.phrase_text(0)}": heads_picture(trained, s, p) for s, p in found["refcoco"][:2]
    }
    heads |= {
        f"control, {s.record_id}: {s.phrase_text(0)}": heads_picture(control, s, p)
        for s, p in zip(samples["refcoco"][:1], predict(control, samples["refcoco"][:1]))
    }
    comparisons = {s.record_id: comparison(s, p) for s, p in (found["png"][:2] + found["refcoco"][:1])}
    others = predict(control, samples["png"][-2:])
    beside = {
        sample.record_id: hstack(
            [
                with_title(overlay(sample, prediction), "trained language model"),
                with_title(overlay(sample, other), "random language model (control)"),
            ]
        )
        for (sample, prediction), other in zip(found["png"][-2:], others)
    }
    return {
        "Phrases and their masks": overlays,
        "Attention heads that carry a phrase": heads,
        "Coarse, refined, target": comparisons,
        "Trained beside control": beside,
        "Losses": {"running mean over the raw values": draw_loss_curves(work_dirs)},
    }


def save_all(pictures: Mapping[str, Mapping[str, np.ndarray]], folder: Path) -> int:
    """Writes the pictures as PNG files into ``folder`` and returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for section, entries in pictures.items():
        for index, picture in enumerate(entries.values(), start=1):
            name = re.sub(r"[^a-z]+", "_", section.lower()).strip("_")
            Image.fromarray(picture).save(folder / f"{name}_{index}.png")
            count += 1
    return count


def predict(model: GroundingLMM, samples: Sequence[Sample]) -> list[Prediction]:
    """Predictions with attention, on the CPU."""
    with torch.inference_mode():
        return [prediction.cpu() for prediction in model.predict(list(samples), keep_attention=True)]


def overlay(sample: Sample, prediction: Prediction) -> np.ndarray:
    """Contours of the predicted masks, and the caption."""
    return draw_grounding(
        sample.image,
        prediction.masks.numpy(),
        _phrases(sample),
        prediction.scores.numpy(),
        caption=sample.text,
        spans=[phrase.spans for phrase in sample.phrases],
        style="contour",  # colours are what TinyWorld's phrases are about
    )


def comparison(sample: Sample, prediction: Prediction) -> np.ndarray:
    """Coarse, refined and target masks of at most five phrases."""
    refined = prediction.refined_logits
    return draw_comparison(
        sample.image,
        _phrases(sample)[:5],
        prediction.coarse_logits.numpy()[:5],
        None if refined is None else refined.numpy()[:5],
        None if sample.masks is None else sample.masks[:5],
    )


def heads_picture(model: GroundingLMM, sample: Sample, prediction: Prediction) -> np.ndarray:
    """The heads that carry the sample's first phrase, ranked by IoU with its target mask."""
    assert prediction.attention is not None
    return draw_attention_heads(
        sample.image,
        prediction.attention[0].numpy(),
        model.lmm.attention_pairs,
        None if sample.masks is None else sample.masks[0],
        grid=model.lmm.prepare(sample).grid,
        phrase=sample.phrase_text(0),
        target="target mask",
    )


def _phrases(sample: Sample) -> list[str]:
    return [sample.phrase_text(index) for index in range(len(sample.phrases))]
