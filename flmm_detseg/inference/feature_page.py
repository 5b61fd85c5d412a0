"""One page without other files about what the heads of a model read of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.errors import DataError
from flmm_detseg.heads import head_of
from flmm_detseg.inference.features import ImageFeatures, PyramidFeatures, read_features
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.inference.result import GroundingResult
from flmm_detseg.models import GroundingLMM
from flmm_detseg.visualization import Report
from flmm_detseg.visualization.features import draw_features, draw_shares
from flmm_detseg.visualization.overlay import enlarged


def feature_page(
    model: GroundingLMM,
    image: np.ndarray,
    out: Path,
    *,
    title: str,
    caption: str | None = None,
    phrases: Sequence[str] | None = None,
    question: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int = 128,
) -> dict[str, Any]:
    """Writes the page.

    Args:
        model: In evaluation mode.
        image: RGB uint8 ``[H, W, 3]``.
        out: Page to write (.html).
        title: Its heading.
        caption: Text whose phrases' attention is shown; None: the answer to ``question``, word groups found in it.
        phrases: Of the caption; None: with an answer, its noun phrases.
        question: What the model answers where there is no caption; None: it describes the image.
        prompt: Question before the caption.
        max_new_tokens: Longest answer.

    Returns:
        Figures for the last line: the page, layers and levels that are on it, and the shares of gates.

    Raises:
        DataError: A caption or a question for a model without a phrase head.
        PhraseNotFoundError: A phrase is not in the text.
    """
    grounds = head_of(model.heads, "phrase") is not None
    if not grounds and (caption is not None or question is not None or phrases):
        raise DataError(
            f"the model has no phrase head (heads: {', '.join(model.heads)}): leave caption, question and phrases out"
        )
    features = read_features(model, image)
    report = Report(
        title, "Colours are the first three principal components of a map's channels, each map by itself."
    )
    report.section("Image")
    report.picture(enlarged(image))
    _tower(report, features, image.shape[:2])
    for name, pyramid in features.pyramids.items():
        _pyramid(report, name, pyramid, image.shape[:2])
    for name, shares in features.text_shares.items():
        report.section(f"{name}: layers in the text prompt", "Shares of the decoder layers' hidden states.")
        report.picture(draw_shares({name: shares}, [f"layer {index}" for index in range(len(shares))]))
    result = None
    if grounds:
        result = _attention(
            report, Grounder(model), image, caption, phrases, question, prompt, max_new_tokens
        )
    report.write(out)
    return {
        "page": str(out),
        "tower_layers": list(features.tower),
        "pyramids": {
            name: [list(level.shape) for level in found.levels] for name, found in features.pyramids.items()
        },
        "gate_shares": {name: dict(found.shares) for name, found in features.pyramids.items()},
        "phrases": [] if result is None else list(result.phrases),
    }


def _tower(report: Report, features: ImageFeatures, size: tuple[int, int]) -> None:
    report.section(
        "Vision tower", "Hidden states after layers of the tower, as maps; layer 0 are the embeddings."
    )
    report.pictures(
        {
            f"layer {layer}: {maps.shape[0]} channels, {maps.shape[1]} x {maps.shape[2]} cells": draw_features(
                maps, size
            )
            for layer, maps in features.tower.items()
        }
    )


def _pyramid(report: Report, name: str, pyramid: PyramidFeatures, size: tuple[int, int]) -> None:
    report.section(f"{name}: feature pyramid", "What the head reads, highest resolution first.")
    report.pictures(
        {
            f"stride {stride:g}: {_shape(maps)}": draw_features(maps, size)
            for stride, maps in zip(pyramid.strides, pyramid.levels, strict=True)
        }
    )
    report.paragraph("Shares of the tower's layers, by the task that the gate is given.")
    report.picture(draw_shares(pyramid.shares, [f"layer {layer}" for layer in pyramid.layers]))


def _shape(maps: np.ndarray) -> str:
    channels, rows, cols = maps.shape
    return f"{channels} channels, {rows} x {cols} cells"


def _attention(
    report: Report,
    grounder: Grounder,
    image: np.ndarray,
    caption: str | None,
    phrases: Sequence[str] | None,
    question: str | None,
    prompt: str | None,
    max_new_tokens: int,
) -> GroundingResult:
    if caption is None:
        result = grounder.ask(image, question, phrases, keep_attention=True, max_new_tokens=max_new_tokens)
    else:
        found = grounder.ground(image, caption, phrases, prompt=prompt, keep_attention=True)
        assert isinstance(found, GroundingResult)  # one image
        result = found
    report.section("Attention", f"Heads that carry each phrase of: {result.caption}")
    if len(result) == 0:
        report.paragraph(
            "The answer names nothing to look for; ask another question, or give a caption and phrases."
        )
    else:
        report.picture(result.overlay())
    for index, phrase in enumerate(result.phrases):
        report.picture(result.attention_picture(index), phrase)
    return result
