"""A conversation about an image: questions and instructions, each with what it names found in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import DataError
from flmm_detseg.heads import head_of
from flmm_detseg.inference.attention_maps import heat_of
from flmm_detseg.inference.export.exportable import Exportable
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.inference.instructions import parse_instruction
from flmm_detseg.inference.instructor import Instructor
from flmm_detseg.inference.regions import Region
from flmm_detseg.inference.result import GroundingResult
from flmm_detseg.inference.samples import question_sample
from flmm_detseg.inference.steps import Step
from flmm_detseg.language.mask_wording import ask_for_mask
from flmm_detseg.models.presence import MinPresence, check_presence, tasks_of_answer
from flmm_detseg.utils.values import check_text
from flmm_detseg.visualization import draw_grounding
from flmm_detseg.visualization.canvas import outline
from flmm_detseg.visualization.dense import box_mask


@dataclass(frozen=True)
class ChatTurn(Exportable):
    """A request and what came of it.

    Attributes:
        request: As it was given.
        kind: ``"question"``: the LMM answered. ``"instruction"``: something was to be detected or segmented.
        text: The LMM's answer, or a sentence for each step with the answers between them.
        phrases: What was named, in the order of the text; their ``spans`` are characters of ``text``, none where the
            words are in the request only.
        image: RGB uint8 ``[H, W, 3]``; that of the conversation.
        uninterpreted: Words of an instruction that belong to no step.
        warning: Of the first turn, where the image is far from all that the model knows: a sentence that says so.
        not_found: Words of the LMM's answers that name nothing in the image, where the chat asks for presence. (What an
            instruction names in vain has a sentence of its own.)
    """

    request: str
    kind: Literal["question", "instruction"]
    text: str
    phrases: tuple[Region, ...]
    image: np.ndarray = field(repr=False)
    uninterpreted: tuple[str, ...] = ()
    warning: str = ""
    not_found: tuple[str, ...] = ()

    def overlay(self, chosen: Sequence[int] | None = None, *, boxes: bool = False) -> np.ndarray:
        """The image with what was named, and below it the text with the phrases in their colours.

        Args:
            chosen: Phrases to draw; None: all.
            boxes: Draw the boxes of masks too; those of detected objects always are.

        Returns:
            RGB uint8.

        Raises:
            DataError: There is no such phrase.
        """
        shown = self._chosen(chosen)
        size = self.image.shape[:2]
        # A box without a mask is drawn by its border.
        masks = [
            phrase.mask if phrase.mask is not None else outline(box_mask(np.array(phrase.box_xyxy), size), 1)
            for phrase in shown
        ]
        drawn = [
            phrase.box_xyxy if boxes or phrase.score_of == "detector" else (0, 0, 0, 0) for phrase in shown
        ]
        return draw_grounding(
            self.image,
            np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
            [phrase.label for phrase in shown],
            [phrase.score for phrase in shown],
            np.array(drawn, dtype=np.float64).reshape(-1, 4),
            caption=self.text,
            spans=[phrase.spans for phrase in shown],
            score_names=[phrase.score_of for phrase in shown],
        )

    @property
    def regions(self) -> Sequence[Region]:
        """The phrases, for exports."""
        return self.phrases

    def _chosen(self, chosen: Sequence[int] | None) -> list[Region]:
        indices = range(len(self.phrases)) if chosen is None else chosen
        for index in indices:
            if not 0 <= index < len(self.phrases):
                raise DataError(f"phrase {index} does not exist; the turn has {len(self.phrases)}")
        return [self.phrases[index] for index in indices]


class Chat:
    """One conversation about one image. For one user and one thread at a time.

    Questions are answered by the LMM with the turns before them, and the answer's noun phrases are grounded by the
    states it was written with (:meth:`Grounder.ask <flmm_detseg.inference.grounder.Grounder.ask>`): those of its mask
    tokens, where the model has a head for them and the answer holds some. Instructions
    ("detect the cars and segment the tree on the left") are followed step by step
    (:class:`~flmm_detseg.inference.instructor.Instructor`); later questions see them as the text of their turn. Where
    a conversation grows longer than the LMM can read, its oldest turns are left out.

    Memory: a byte a pixel for each phrase with a mask, four more with ``keep_attention``.

    Args:
        grounder: Its model. One without a head for phrases, nor one for mask tokens, answers and detects, and grounds
            nothing. With the latter alone, "segment ..." is asked of the LMM in the words of its training
            (:func:`~flmm_detseg.language.mask_wording.ask_for_mask`), and it answers with mask tokens.
        image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``.
        max_new_tokens: Longest answer.
        keep_attention: Keep where the LMM looked for each phrase; there is no such place for mask tokens.
        score_threshold: Least class probability of a detected object.
        min_presence: Least probability that there is what a phrase names, see :meth:`Grounder.ask
            <flmm_detseg.inference.grounder.Grounder.ask>`; below it the phrase is said not to be found.
        answer_with_detections: As of :class:`~flmm_detseg.inference.instructor.Instructor`; earlier turns are read
            without it.

    Raises:
        DataError: The image cannot be read.
        ConfigError: ``min_presence`` with a model one of whose heads that may ground an answer has no presence head;
            see ``answer_with_detections``.

    Example:
        >>> chat = Chat(Grounder.from_config(config, checkpoint), "scene.png")
        >>> chat.say("what is above the ring ?").text
        >>> chat.say("segment the star on the left").overlay()
    """

    def __init__(
        self,
        grounder: Grounder,
        image: ImageLike,
        *,
        max_new_tokens: int = 128,
        keep_attention: bool = False,
        score_threshold: float = 0.3,
        min_presence: MinPresence = None,
        answer_with_detections: bool | str = False,
    ) -> None:
        self.grounder = grounder
        self.image = read_image(image, "image")
        self.max_new_tokens = max_new_tokens
        self.keep_attention = keep_attention
        self.turns: tuple[ChatTurn, ...] = ()
        self.min_presence = min_presence
        # Before anything is said, so that no answer is lost to it.
        plain = grounder.model.retention.mode != "always"
        check_presence(grounder.model, min_presence, tasks_of_answer(grounder.model, plain=plain))
        has_phrases = head_of(grounder.model.heads, "phrase") is not None
        self._instructor = Instructor(
            grounder.model,
            score_threshold=score_threshold,
            min_presence=min_presence if has_phrases else None,
            answer_with_detections=answer_with_detections,
        )

    def say(self, text: str) -> ChatTurn:
        """Answers a question, or follows an instruction; the turn is remembered.

        Args:
            text: A question, or one or more sentences that begin with a verb such as "detect" or "segment"
                (:func:`~flmm_detseg.inference.instructions.parse_instruction`).

        Returns:
            The turn, which is the last of :attr:`turns` now. After an error the conversation is as it was.

        Raises:
            DataError: The text is empty, cannot be read, or asks for nothing.
            ConfigError: The model has no head for what is asked.
        """
        request = check_text(text, "request").strip()
        if not request:
            raise DataError(
                "the request is empty; ask something, or say for example 'segment the tree on the left'"
            )
        parsed = parse_instruction(request)
        warning = "" if self.turns else self.grounder.warning(self.image)
        if all(step.kind == "answer" for step in parsed.steps):
            answer, phrases, absent = self._answer(request)
            turn = ChatTurn(
                request, "question", answer, phrases, self.image, warning=warning, not_found=absent
            )
        else:
            answer, phrases, absent = self._follow(parsed.steps)
            turn = ChatTurn(
                request, "instruction", answer, phrases, self.image, parsed.uninterpreted, warning, absent
            )
        self.turns = (*self.turns, turn)
        return turn

    def _follow(self, steps: Sequence[Step]) -> tuple[str, tuple[Region, ...], tuple[str, ...]]:
        """A sentence for each step, with what was found, and what answers named in vain."""
        tasks = [step for step in steps if step.kind != "answer" and not self._is_asked(step)]
        found = iter(self._instructor.find(self.image, tasks, keep_attention=self.keep_attention))
        text = ""
        phrases: list[Region] = []
        absent: tuple[str, ...] = ()
        for step in steps:
            start = len(text) + 1 if text else 0
            if step.kind == "answer" or self._is_asked(step):
                asked = step.kind == "segment"
                # In the words that answers with masks are learned from.
                question = ask_for_mask(step.text) if asked else step.text
                sentence, named, missing = self._answer(question, reasoning=asked)
                absent += missing
                phrases += [_moved(phrase, start) for phrase in named]
            else:
                outcome = next(found)
                sentence = outcome.sentence
                span = (start, start + len(step.text))
                phrases += [replace(region, spans=(span,)) for region in outcome.regions]
            text = f"{text} {sentence}" if text else sentence
        return text, tuple(phrases), absent

    def _is_asked(self, step: Step) -> bool:
        """Whether a step is a question to the LMM, because no head but that of mask tokens can follow it."""
        heads = self.grounder.model.heads
        if (
            step.kind != "segment"
            or head_of(heads, "phrase")
            or self._instructor.map_labels(step) is not None
        ):
            return False
        return head_of(heads, "reasoning") is not None

    def _answer(
        self, question: str, *, reasoning: bool = False
    ) -> tuple[str, tuple[Region, ...], tuple[str, ...]]:
        """The answer, what it names, and what it names in vain."""
        if not reasoning:
            question = self._instructor.with_detections(self.image, question)
        turns = self._remembered(question)
        limit = self.max_new_tokens
        heads = self.grounder.model.heads
        if head_of(heads, "phrase") is None and head_of(heads, "reasoning") is None:
            return self.grounder.answer(self.image, question, turns=turns, max_new_tokens=limit), (), ()
        result = self.grounder.ask(
            self.image,
            question,
            turns=turns,
            reasoning=reasoning,
            keep_attention=self.keep_attention and not reasoning,
            max_new_tokens=limit,
            min_presence=self.min_presence,
        )
        return result.caption, _named(result), result.not_found

    def _remembered(self, question: str) -> list[tuple[str, str]]:
        """Earlier turns that the LMM can read before a question: as many of the last ones as leave room for an answer.

        None of those up to one that it cannot read at all, because a token that ends turns was written in it.
        """
        lmm = self.grounder.model.lmm
        turns = [(turn.request, turn.text) for turn in self.turns]
        while turns:
            try:
                inputs = lmm.prepare(question_sample(self.image, question, turns=turns))
            except DataError:  # too long; where it is the question's own fault, asking says so
                turns = turns[1:]
                continue
            length, limit = len(inputs.input_ids), lmm.position_limit
            if limit is None or length + self.max_new_tokens <= limit:
                break
            turns = turns[1:]
        return turns


def _named(result: GroundingResult) -> tuple[Region, ...]:
    """What was found, with where the LMM looked for it where that was kept."""
    attention, grid = result.attention, result.grid
    if attention is None or grid is None:
        return tuple(result.regions)
    return tuple(
        replace(region, attention=heat_of(attention[index], grid))
        for region, index in zip(result.regions, np.flatnonzero(result.found), strict=True)
    )


def _moved(phrase: Region, by: int) -> Region:
    return replace(phrase, spans=tuple((start + by, end + by) for start, end in phrase.spans))
