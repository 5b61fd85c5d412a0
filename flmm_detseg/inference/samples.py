"""From what people give (images, texts, turns, phrases) to samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import DataError
from flmm_detseg.inference.phrases import check_spans, locate_phrases
from flmm_detseg.structures import Phrase, Region, Sample, Turn

Span: TypeAlias = tuple[int, int]
RegionLike: TypeAlias = Region | Sequence[float] | np.ndarray


def question_sample(
    pixels: np.ndarray,
    question: str | None,
    *,
    text: str = "",
    phrases: tuple[Phrase, ...] = (),
    turns: Sequence[tuple[str, str]] = (),
    more_images: Sequence[ImageLike] = (),
    modalities: Sequence[str] = (),
    regions: Sequence[RegionLike] = (),
) -> Sample:
    """A question about an image, with or without its answer.

    Args:
        pixels: RGB, uint8, ``[H, W, 3]``.
        question: Free text; None asks for a description.
        text: The answer.
        phrases: Of the answer.
        turns: Earlier questions and their answers, in order.
        more_images: Further images of the prompt.
        modalities: What each image is, the first included; empty: photos.
        regions: What the question points at, in the order of its places for them.

    Returns:
        The sample.

    Raises:
        DataError: An image cannot be read, or a turn is no pair of texts.
    """
    earlier = []
    for index, turn in enumerate(turns):
        if isinstance(turn, str) or len(turn) != 2:
            raise DataError(f"turn {index} is {turn!r:.80}; a pair (question, answer) is needed")
        earlier.append(Turn(*turn))
    further = tuple(read_image(image, f"further image {index}") for index, image in enumerate(more_images))
    pointed = tuple(Region.of(region) for region in regions)
    return Sample(
        "question",
        pixels,
        text,
        phrases,
        prompt=question,
        turns=tuple(earlier),
        more_images=further,
        modalities=tuple(modalities),
        regions=pointed,
    )


def located_phrases(
    record: str,
    caption: str,
    phrases: Sequence[str] | None,
    spans: Sequence[Span | Sequence[Span]] | None,
) -> tuple[Phrase, ...]:
    """Phrases of a text, given as texts or as character ranges.

    Args:
        record: Names the text in errors.
        caption: The text.
        phrases: Texts that occur in it as whole words; None: ``spans`` are given.
        spans: Character ranges, half-open; for a phrase in several parts a list of ranges.

    Returns:
        At least one phrase.

    Raises:
        PhraseNotFoundError: A phrase is not in the text, or a range lies outside of it.
        DataError: They are no lists, or empty.
    """
    if isinstance(phrases, str):
        raise DataError(f"{record}: phrases is one text ({phrases!r}); pass a list of texts")
    for name, values in (("phrases", phrases), ("spans", spans)):
        if values is not None and not isinstance(values, Sequence):
            raise DataError(f"{record}: {name} is a {type(values).__name__}; pass a list")
    located: tuple[Phrase, ...] = (
        locate_phrases(caption, phrases, record)
        if phrases is not None
        else check_spans(caption, spans or [], record)
    )
    if not located:
        raise DataError(f"{record}: no phrase to ground in {caption!r}")
    return located
