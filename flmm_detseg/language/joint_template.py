"""The joint template as a text format: tags, and after each its items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.items import JointAnswer
from flmm_detseg.language.number_words import NumberWords, number_words
from flmm_detseg.language.parse import ParsedAnswer, parse_answer
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions, TemplateForm, serialise
from flmm_detseg.language.task_tokens import OBJECTS_QUESTION, SEG_TOKEN, build_prompt, remove_special_tokens
from flmm_detseg.language.text_format import DEFAULT_OPTIONS, TextFormat
from flmm_detseg.utils.tokenizer_file import read_offsets

# Of the tiny LLaVA's own words.
_WORDS_QUESTION = "what is in this image ?"


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

    Raises:
        ConfigError: The tokenizer cannot be read, or there is no such mask token.
    """

    name = "template"

    def __init__(
        self,
        numbers: str | Mapping[str, Any] | NumberWords | None = None,
        words: bool = False,
        mask_token: str = SEG_TOKEN,
    ) -> None:
        if mask_token not in (SEG_TOKEN, MASK_TOKEN):
            raise ConfigError(f"`mask_token` is {mask_token!r}; allowed: {SEG_TOKEN}, {MASK_TOKEN}")
        if isinstance(numbers, str):
            numbers = number_words(read_offsets(numbers))
        elif isinstance(numbers, Mapping):
            numbers = NumberWords(tuple(numbers["values"]), bool(numbers["padded"]))
        self.mask_token = mask_token
        self.objects_question = _WORDS_QUESTION if words else OBJECTS_QUESTION
        self.form = TemplateForm(words=words, numbers=numbers, mask_token=mask_token)

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
        """See the base class; the same for every image size."""
        return serialise(answer, options, self.form)

    def parse(self, text: str, image_size: tuple[int, int]) -> ParsedAnswer:
        """See :func:`~flmm_detseg.language.parse.parse_answer`."""
        return parse_answer(text, mask_token=self.form.mask_token, bare_boxes=self.form.words)
