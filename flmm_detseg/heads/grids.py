"""Batches of images that keep their resolution: dense heads read the images of one patch grid at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from flmm_detseg.structures import GroundingBatch, LMMStates


class OneGrid(NamedTuple):
    """The samples of a batch whose images have the same patch grid.

    Attributes:
        places: Where they are in the batch, ascending.
        states: Theirs, vision maps only where the batch has several grids.
        batch: They.
    """

    places: list[int]
    states: LMMStates
    batch: GroundingBatch


def same_grid(batch: GroundingBatch) -> list[list[int]]:
    """Divides a batch by the patch grid of the view of the whole image.

    Args:
        batch: Samples with their geometry.

    Returns:
        Places of the samples of each grid, in order of each one's first sample.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for place, inputs in enumerate(batch.inputs):
        found.setdefault(inputs.grid.view_grid, []).append(place)
    return list(found.values())


def by_grid(states: LMMStates, batch: GroundingBatch) -> list[OneGrid]:
    """Divides a batch and its vision maps as :func:`same_grid` does; a batch of one grid is passed on as it is.

    Nothing is padded: norms over a whole map and the borders of convolutions would see it.

    Args:
        states: With vision maps.
        batch: The samples.

    Returns:
        A part for each grid.
    """
    parts = same_grid(batch)
    if len(parts) <= 1:
        return [OneGrid(list(range(len(batch))), states, batch)]
    assert states.vision is not None, "dense heads ask for vision maps in `capture`"
    return [
        OneGrid(places, LMMStates(vision=[states.vision[i] for i in places]), batch.part(places))
        for places in parts
    ]


def summed(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Adds up the figures of the parts of a batch.

    Args:
        parts: Per part its figures by name; the names are the same in all.

    Returns:
        Sums by name.
    """
    first, *others = parts
    return {name: sum((part[name] for part in others), start=value) for name, value in first.items()}
