"""Coordinates of regions in the text of a question, before the places that a part of the LMM fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import NumberWords, quantise_boxes, quantise_points
from flmm_detseg.language.number_words import chosen_numbers
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.registry import check_arguments
from flmm_detseg.structures import Region
from flmm_detseg.utils.values import shown


class RegionCoordinates:
    """Writes where each region lies: ``what is [100, 200, 300, 400] <region> ?``, a point as ``[x, y] <region>``.

    Integers 0..999 of each axis of the region's image; of a mask those of its box.

    Args:
        numbers: Number words of the LMM, as of :class:`~flmm_detseg.language.joint_template.JointTemplate`: folder or
            hub name of the LMM, or arguments of :class:`~flmm_detseg.language.number_words.NumberWords`. None: any of
            0..999.
        words: Numbers only, ``100 200 300 400 <region>``, for LMMs whose vocabulary has few marks.

    Raises:
        ConfigError: The tokenizer cannot be read, or the numbers are none.
    """

    def __init__(
        self, numbers: str | Mapping[str, Any] | NumberWords | None = None, words: bool = False
    ) -> None:
        self.numbers, self.words = chosen_numbers(numbers), words

    @classmethod
    def of(cls, value: Any) -> RegionCoordinates | None:
        """What the argument ``region_coordinates`` of a data set says.

        Args:
            value: None, arguments of this class, or one.

        Returns:
            None where questions stay as they are.

        Raises:
            ConfigError: It is something else.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"`region_coordinates` is {shown(value)}; None, or dict(numbers=..., words=...) is needed"
            )
        check_arguments(cls, value, "region_coordinates")
        return cls(**value)

    def write(
        self,
        question: str,
        regions: Sequence[Region],
        image_sizes: Sequence[tuple[int, int]],
        token: str = "<region>",
    ) -> str:
        """Puts coordinates before the places of regions.

        Args:
            question: With a place for each region.
            regions: In the order of their places.
            image_sizes: ``(H, W)`` of each image of the prompt.
            token: What stands for a region.

        Returns:
            The question.

        Raises:
            DataError: There are more or fewer places than regions.
        """
        before, *after = question.split(token)
        if len(after) != len(regions):
            raise DataError(f"{len(after)} times {token} in the question, but {len(regions)} regions")
        parts = [
            f"{self._place(region, image_sizes[region.image])} {token}{text}"
            for region, text in zip(regions, after, strict=True)
        ]
        return "".join([before, *parts])

    def _place(self, region: Region, size: tuple[int, int]) -> str:
        if region.point_xy is not None:
            found = quantise_points(np.array(region.point_xy), size)
        else:
            if region.mask is None:
                box = np.array(region.box_xyxy)
            else:
                box = masks_to_boxes(torch.from_numpy(region.mask)[None])[0].numpy()
            found = quantise_boxes(box, size)
        numbers, values = self.numbers, found.tolist()
        written = [str(v) if numbers is None else numbers.spell(numbers.nearest(v)) for v in values]
        return " ".join(written) if self.words else f"[{', '.join(written)}]"
