"""The contract of answers as text: what writes them, and what reads them again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.items import JointAnswer, MaskItem
from flmm_detseg.language.parse import ParsedAnswer
from flmm_detseg.language.polygons import mask_to_polygons
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions
from flmm_detseg.language.task_tokens import TASK_TOKENS

DEFAULT_OPTIONS = SerialiseOptions()


class TextFormat(ABC):
    """How an answer in words, boxes and masks is asked for, written and read.

    For every answer that can be written, ``parse(write(answer).text)`` gives ``write(answer).answer`` without a
    problem.

    Attributes:
        name: By which configs and commands know it.
        sections: What an answer in this format may hold, of :data:`~flmm_detseg.language.task_tokens.TASK_TOKENS`.
        mask_token: Stands for a mask that a head draws; None: there is no such token.
        objects_question: Asks for all objects.
    """

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]] = tuple(TASK_TOKENS)
    mask_token: str | None = None
    objects_question: str

    @abstractmethod
    def ask(self, question: str, sections: Iterable[str]) -> str:
        """A prompt.

        Args:
            question: The user's words.
            sections: Wanted in the answer.

        Returns:
            The prompt that asks for an answer in this format.

        Raises:
            ConfigError: A section that is unknown, or that the format has not.
        """

    @abstractmethod
    def write(
        self, answer: JointAnswer, image_size: tuple[int, int], options: SerialiseOptions = DEFAULT_OPTIONS
    ) -> SerialisedAnswer:
        """An answer as text.

        Args:
            answer: Items in canonical coordinates.
            image_size: ``(H, W)`` of the original image.
            options: Order and caps.

        Returns:
            The text, and what it says.

        Raises:
            ConfigError: The answer has a section that the format has not.
            DataError: A label is empty after normalising, or a mask has nothing left as this format writes masks.
        """

    @abstractmethod
    def parse(self, text: str, image_size: tuple[int, int]) -> ParsedAnswer:
        """What a text says; takes any string, never raises, and needs time linear in its length.

        Args:
            text: What the model wrote.
            image_size: ``(H, W)`` of the original image.

        Returns:
            The answer in canonical coordinates, where its items stand, and what had to be repaired or dropped.
        """

    def mask_item(self, label: str, mask: np.ndarray, max_points: int = 24) -> MaskItem | None:
        """A mask as this format writes masks in text: outlines, unless it says otherwise.

        Args:
            label: Its name.
            mask: bool ``[H, W]`` of the original image.
            max_points: Points of each outline at most.

        Returns:
            The item; None where nothing of the mask is left.
        """
        polygons = mask_to_polygons(mask, max_points).polygons
        return MaskItem(label, polygons) if polygons else None

    def check_sections(self, sections: Iterable[str]) -> None:
        """Refuses what the format cannot say.

        Args:
            sections: Of an answer.

        Raises:
            ConfigError: One is unknown, or the format has none such.
        """
        for section in sections:
            if section not in TASK_TOKENS:
                raise ConfigError(f"unknown section {section!r}; there are {', '.join(TASK_TOKENS)}")
            if section not in self.sections:
                raise ConfigError(
                    f"text format {self.name!r} has no section {section!r} (it has {', '.join(self.sections)}); "
                    "leave the section out, or choose another format"
                )
