"""The wrong-phrases control: the masks of an image with phrases of other images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from flmm_detseg.datasets.base import GroundingDataset, join_sentences
from flmm_detseg.errors import DataError
from flmm_detseg.structures import Phrase, Sample

_MAX_DRAWS = 1000


class ShuffledPhrases(Dataset[Sample]):
    """A dataset whose every phrase is replaced by one of another image; images and masks stay.

    A model that reads the phrase must do clearly worse here; one that just marks a salient object does not.
    The text becomes the new phrases, each followed by ``"."``. Deterministic by (``seed``, index).

    Args:
        dataset: A reader or a mix.
        seed: Of the draw.

    Raises:
        DataError: No other image has a phrase that the image itself lacks.
    """

    def __init__(self, dataset: GroundingDataset | Any, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        self._pool: list[tuple[str, str]] = []
        self._own: dict[str, set[str]] = {}
        for index in range(len(dataset)):
            image_id, texts = dataset.phrase_texts(index)
            self._pool += [(image_id, text) for text in texts]
            self._own.setdefault(image_id, set()).update(texts)

    def __len__(self) -> int:
        return len(self.dataset)

    def record_id(self, index: int) -> str:
        """Record id of the original."""
        return self.dataset.record_id(index)

    def __getitem__(self, index: int) -> Sample:
        texts = self.wrong_texts(index)
        sample = self.dataset[index]
        text, spans = join_sentences(texts)
        phrases = tuple(
            Phrase(spans=(span,), is_thing=phrase.is_thing, is_plural=phrase.is_plural)
            for span, phrase in zip(spans, sample.phrases, strict=True)
        )
        return replace(sample, text=text, phrases=phrases)

    def wrong_texts(self, index: int) -> list[str]:
        """One phrase of another image per phrase of the record; none of them occurs with its own image."""
        image_id, texts = self.dataset.phrase_texts(index)
        rng = np.random.default_rng((self.seed, index))
        return [self._draw(rng, image_id) for _ in texts]

    def _draw(self, rng: np.random.Generator, image_id: str) -> str:
        for _ in range(_MAX_DRAWS):
            other_id, text = self._pool[int(rng.integers(len(self._pool)))]
            if other_id != image_id and text not in self._own[image_id]:
                return text
        raise DataError(
            f"{image_id}: no phrase of another image differs from its own. This control needs several images."
        )
