"""The joint template as a text format: tags, and after each its items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.draw_mask import draw_mask
from flmm_detseg.language.image_places import PLACES, place_of
from flmm_detseg.language.items import JointAnswer, MaskItem
from flmm_detseg.language.mask_runs import MaskRuns
from flmm_detseg.language.mask_words import ReadMask, read_place, read_runs
from flmm_detseg.language.number_words import NumberWords, chosen_numbers
from flmm_detseg.language.parse import ParsedAnswer, parse_answer
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions, TemplateForm, serialise
from flmm_detseg.language.task_tokens import OBJECTS_QUESTION, SEG_TOKEN, build_prompt, remove_special_tokens
from flmm_detseg.language.text_format import DEFAULT_OPTIONS, TextFormat

# Of the tiny LLaVA's own words.
_WORDS_QUESTION = "what is in this image ?"

Masks = Literal["outlines", "runs", "places"]


class JointTemplate(TextFormat):
    """``Answer: ...``, ``Detections: ...``, ``Segmentations: ...``: see :mod:`flmm_detseg.language.serialise`.

    Args:
        numbers: Numbers are rounded to those that are single tokens: folder or hub name of the LMM whose tokenizer says
            which (:func:`~flmm_detseg.language.number_words.number_words`; where the rule finds none, they stay), or
            the arguments of :class:`~flmm_detseg.language.number_words.NumberWords`. None: 0..999 as they are.
        words: Tags in lower case, boxes as four words after the name, the request as a sentence after the question. For
            LMMs whose vocabulary has words and few marks. False: brackets and commas, task tokens before the question.
        mask_token: Stands for a mask that a head draws: ``<SEG>`` (the states of the name are read) or ``[SEG]`` (its
            own state is read, by heads for task ``"reasoning"``; the LMM needs it as an added token).
        masks: How masks stand in the text that no head draws. ``"outlines"``: polygons. ``"runs"``: COCO's compressed
            run lengths in Base64 (``car YjA0NDAwMDAwPg==``). ``"places"``: the ninth of the image in which the middle
            of the mask's box lies, as words (``car at the top left``); it is read as the whole ninth.
        side: Rows and columns of the grid of run lengths, which covers the image; 0: its own pixels.

    Raises:
        ConfigError: The tokenizer cannot be read, or there is no such mask token, way to write masks, or grid.
    """

    name = "template"

    def __init__(
        self,
        numbers: str | Mapping[str, Any] | NumberWords | None = None,
        words: bool = False,
        mask_token: str = SEG_TOKEN,
        masks: Masks = "outlines",
        side: int = 64,
    ) -> None:
        if masks not in get_args(Masks):
            raise ConfigError(f"`masks` is {masks!r}; allowed: {', '.join(get_args(Masks))}")
        if not isinstance(side, int) or isinstance(side, bool) or side < 0:
            raise ConfigError(
                f"`side` is {side!r}; give the rows of the grid, or 0 for the image's own pixels"
            )
        self.masks, self.side = masks, side
        if mask_token not in (SEG_TOKEN, MASK_TOKEN):
            raise ConfigError(f"`mask_token` is {mask_token!r}; allowed: {SEG_TOKEN}, {MASK_TOKEN}")
        self.mask_token = mask_token
        self.objects_question = _WORDS_QUESTION if words else OBJECTS_QUESTION
        self.form = TemplateForm(
            words=words, numbers=chosen_numbers(numbers), mask_token=mask_token, places=masks == "places"
        )

    def ask(self, question: str, sections: Iterable[str]) -> str:
        """See the base class."""
        sections = tuple(sections)
        self.check_sections(sections)
        if not self.form.words:
            return build_prompt(question, sections)
        question = remove_special_tokens(question).replace(MASK_TOKEN, " ").strip()
        lists = [name for name in ("detections", "segmentations") if name in sections]
        if not lists:
            return question
        return f"{question} answer with {' and '.join(lists)} .".strip()

    def write(
        self, answer: JointAnswer, image_size: tuple[int, int], options: SerialiseOptions = DEFAULT_OPTIONS
    ) -> SerialisedAnswer:
        """See the base class; masks of another kind than the format's are drawn and written as its own."""
        if answer.segmentations:
            own = tuple(self._own_mask(item, image_size) for item in answer.segmentations)
            answer = replace(answer, segmentations=own)
        return serialise(answer, options, self.form)

    def parse(self, text: str, image_size: tuple[int, int]) -> ParsedAnswer:
        """See :func:`~flmm_detseg.language.parse.parse_answer`; outlines are read whatever ``masks`` is."""
        read: ReadMask | None = None
        if self.masks == "runs":
            read = partial(read_runs, size=self._grid(image_size))
        elif self.masks == "places":
            read = read_place
        return parse_answer(text, mask_token=self.form.mask_token, bare_boxes=self.form.words, read_mask=read)

    def mask_item(self, label: str, mask: np.ndarray, max_points: int = 24) -> MaskItem | None:
        """See the base class; run lengths lose what is between the middles of the grid's cells."""
        if self.masks == "outlines":
            return super().mask_item(label, mask, max_points)
        if self.masks == "places":
            return MaskItem(label, (place_of(mask),)) if mask.any() else None
        runs = MaskRuns.of(mask, self._grid((mask.shape[0], mask.shape[1])))
        return MaskItem(label, runs=runs) if runs.draw(runs.size).any() else None

    def _grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return (self.side, self.side) if self.side else image_size

    def _own_mask(self, item: MaskItem, image_size: tuple[int, int]) -> MaskItem:
        """A mask as this format writes it."""
        own = {
            "outlines": item.polygons is not None,
            "runs": item.runs is not None and item.runs.size == self._grid(image_size),
            "places": item.polygons is not None and len(item.polygons) == 1 and item.polygons[0] in PLACES,
        }
        if item.seg_index is not None or own[self.masks]:
            return item
        made = self.mask_item(item.label, draw_mask(item, image_size))
        if made is None:
            raise DataError(
                f"nothing of the mask of {item.label!r} is left as {self.masks} of an image of {image_size}; leave the "
                "item out"
            )
        return made
