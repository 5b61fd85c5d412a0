"""A prepared prompt, split where it can be cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from flmm_detseg.cache.reading.layout import PromptLayout, SequencePlan
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import LMMInputs
from flmm_detseg.structures.partition import PatchPartition


@dataclass(frozen=True)
class PartitionedInputs(LMMInputs):
    """A prepared sample (its sequence in the LMM's own order) with the groups of its patches."""

    partition: PatchPartition = field(kw_only=True)


@dataclass(frozen=True)
class PromptParts:
    """One prompt, split where it can be cached.

    Attributes:
        system_ids: int64 ``[S]``, before the image.
        text_ids: int64, after it: question, and answer where there is one.
        background: Patches of the prefix, int64 ``[n]``.
        objects: Patches computed for every request, int64 ``[m]``.
        plan: Where everything is.
        questions: Where ``text_ids`` are no answer, as (start, end): the beginning; of a row of several texts, the
            beginning of each.
        fusion_positions: See :meth:`PromptLayout.fusion_positions`.
    """

    system_ids: Tensor
    text_ids: Tensor
    background: Tensor
    objects: Tensor
    plan: SequencePlan
    questions: tuple[tuple[int, int], ...]
    fusion_positions: Tensor


def with_partition(item: LMMInputs, partition: PatchPartition) -> PartitionedInputs:
    """A prepared sample with its groups."""
    return PartitionedInputs(
        **{part.name: getattr(item, part.name) for part in fields(LMMInputs)}, partition=partition
    )


def partitioned(inputs: Sequence[LMMInputs]) -> list[PartitionedInputs]:
    """The same samples, known to have groups.

    Args:
        inputs: Prepared samples.

    Returns:
        All of them, in order.

    Raises:
        ConfigError: A sample was prepared by another adapter.
    """
    found = [item for item in inputs if isinstance(item, PartitionedInputs)]
    if len(found) < len(inputs):
        other = next(item for item in inputs if not isinstance(item, PartitionedInputs))
        raise ConfigError(f"{other.record_id}: prepared without groups of patches; use CachedLMM.prepare")
    return found


def split_prompt(
    layout: PromptLayout,
    item: LMMInputs,
    partition: PatchPartition | None = None,
    changed: Tensor | None = None,
) -> PromptParts:
    """Splits a prompt.

    Args:
        layout: Order and positions.
        item: Prepared sample.
        partition: Its groups; None for those it was prepared with.
        changed: Patches of the background that are recomputed as object tokens, int64.

    Returns:
        The parts and the plan of the sequence (CPU).

    Raises:
        ConfigError: The sample was prepared by another adapter.
        DataError: The prompt is too long, or the groups are of another grid.
    """
    if partition is None:
        partition = partitioned([item])[0].partition
    start, end = image_span(item)
    assert end - start == layout.num_patches, item.record_id
    if len(partition.group) != layout.num_patches:
        raise DataError(
            f"{item.record_id}: groups of {len(partition.group)} patches ({partition.grid[0]} x {partition.grid[1]}), "
            f"but the vision tower sees {layout.num_patches}; make them with the model's own partitioner"
        )
    background, objects = layout.background(partition), layout.objects(partition)
    if changed is not None:
        objects = torch.cat([objects, changed]).sort().values
    return _parts(layout, item, background, objects)


def with_text(layout: PromptLayout, part: PromptParts, item: LMMInputs) -> PromptParts:
    """The prompt of another sample about the same image, with the same groups.

    Args:
        layout: How prompts of the model are put together.
        part: Prompt of the sample whose image and groups are kept.
        item: Inputs of the other sample.

    Returns:
        The prompt, with ``part``'s background and objects.

    Raises:
        DataError: It is too long.
    """
    return _parts(layout, item, part.background, part.objects)


def _parts(layout: PromptLayout, item: LMMInputs, background: Tensor, objects: Tensor) -> PromptParts:
    start, end = image_span(item)
    text = item.input_ids[end:]
    num_question = item.prefix_length - end
    return PromptParts(
        system_ids=item.input_ids[:start],
        text_ids=text,
        background=background,
        objects=objects,
        plan=layout.plan(start, background, objects, len(text), item.record_id),
        questions=((0, num_question),),
        fusion_positions=layout.fusion_positions(background, objects, num_question),
    )


def image_span(item: LMMInputs) -> tuple[int, int]:
    """Where the image tokens begin in the LMM's own sequence, and where the text goes on."""
    image = item.image_mask.nonzero().flatten()
    return int(image[0]), int(image[-1]) + 1
