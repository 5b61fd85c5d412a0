"""Answers with mask tokens, made of the phrases and masks of any reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.derived import DerivedDataset
from flmm_detseg.datasets.mask_answers import (
    ABSENT_KEY,
    REASONING,
    UNSTATED,
    check_query,
    check_wordings,
    mask_phrases,
)
from flmm_detseg.errors import ConfigError
from flmm_detseg.language.mask_wording import answer_with_masks, ask_for_caption, ask_for_mask
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample

FORMS = ("questions", "captions")


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    index: int  # of the reader
    phrase: int | None  # None: all


@DATASETS.register_module()
class SegAnswers(DerivedDataset):
    """Turns samples of a reader of phrases (RefCOCO, PNG, GranD-f, own data) into samples of the task ``reasoning``.

    ``form="questions"``: one sample a phrase, which the question asks for; the answer has one ``[SEG]``, or says that
    nothing is there where the phrase's mask is empty. ``form="captions"``: one sample a record, whose text gets a
    ``[SEG]`` after each phrase that has a mask, in the order of their ends (GLaMM's grounded conversations).
    ``meta["names"]`` holds the phrases in the order of the ``[SEG]``; what the reader put into ``meta`` stays, but for
    ``absent``, its list of what makes phrases absent: a question has the entry of its own phrase, where that is not
    there (``"other"`` where the reader does not say why).

    Args:
        dataset: A reader whose samples have phrases and masks, or its config.
        form: See above.
        wordings: ``"random"``: questions and answers are worded anew in each epoch, a function of (``seed``, epoch,
            record) alone; ``"first"``: always in the same form, as an evaluation wants it.
        seed: Of the draw.

    Raises:
        ConfigError: An argument has a value that is not allowed.
        DataError: No record of the reader has a phrase.

    Source: Rasheed et al., GLaMM: Pixel Grounding Large Multimodal Model, CVPR 2024 (arXiv 2311.03356).
    """

    def __init__(
        self,
        dataset: GroundingDataset | Mapping[str, Any],
        form: str = "questions",
        wordings: str = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(dataset)
        if form not in FORMS:
            raise ConfigError(f"`form` is {form!r}; allowed: {', '.join(FORMS)}")
        self.form, self.wordings, self.seed = form, check_wordings(wordings), seed
        self.records = self._make_records()
        self._finish(False, f"mask answers of {type(self.dataset).__name__}")

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; its phrases are mask tokens, which have no words."""
        return self.dataset.phrase_texts(self.records[index].index)[0], []

    def _make_records(self) -> list[_Record]:
        records = []
        for index in range(len(self.dataset)):
            number, record_id = len(self.dataset.phrase_texts(index)[1]), self.dataset.record_id(index)
            if not number:
                self._log.drop("no phrase", record_id)
            elif self.form == "captions":
                records.append(_Record(f"seg/{record_id}", index, None))
            else:
                records += [_Record(f"seg/{record_id}/phrase-{k}", index, k) for k in range(number)]
        return records

    def _read(self, record: _Record) -> Sample:
        sample = self.dataset[record.index]
        key = (self.seed, self.epoch, record.index, record.phrase or 0)
        draw = np.random.default_rng(key) if self.wordings == "random" else None
        assert sample.masks is not None
        if record.phrase is None:
            check_query(sample.text, "text")
            text, order = tag_phrases(sample)
            names, prompt = [sample.phrase_text(k) for k in order], ask_for_caption(draw)
        else:
            words = check_query(sample.phrase_text(record.phrase), "phrase")
            order = [record.phrase] if sample.masks[record.phrase].any() else []
            names, prompt = [words] * len(order), ask_for_mask(words, draw)
            text = answer_with_masks(len(order), (), draw)
        meta: dict[str, Any] = {key: value for key, value in sample.meta.items() if key != ABSENT_KEY}
        meta["names"] = names
        if record.phrase is not None:
            meta["query"] = words
            if not order:
                reasons = sample.meta.get(ABSENT_KEY) or [None] * len(sample.phrases)
                meta[ABSENT_KEY] = reasons[record.phrase] or UNSTATED
        return replace(
            sample,
            record_id=record.record_id,
            text=text,
            phrases=mask_phrases(text),
            masks=sample.masks[order],
            prompt=prompt,
            task=REASONING,
            meta=meta,
        )


def tag_phrases(sample: Sample) -> tuple[str, list[int]]:
    """A text with a mask token after each phrase that has a mask.

    Args:
        sample: With masks.

    Returns:
        The text, and which phrase each token is for. Of phrases that end together the shorter one comes first.
    """
    assert sample.masks is not None
    ends = {k: phrase.spans[-1][1] for k, phrase in enumerate(sample.phrases) if sample.masks[k].any()}
    order = sorted(ends, key=lambda k: (ends[k], -sample.phrases[k].spans[0][0]))
    parts, start = [], 0
    for k in order:
        parts += [sample.text[start : ends[k]], f" {MASK_TOKEN}"]
        start = ends[k]
    return "".join([*parts, sample.text[start:]]), order
