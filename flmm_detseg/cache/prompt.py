"""A prepared prompt, split where it can be cached, and where its tokens are in the new order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.layout import PromptLayout, SequencePlan
from flmm_detseg.cache.types import PatchPartition
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.prefix import PhraseRows, phrase_entries
from flmm_detseg.structures import LMMInputs


@dataclass(frozen=True)
class PartitionedInputs(LMMInputs):
    """A prepared sample (its sequence in the LMM's own order) with the groups of its patches."""

    partition: PatchPartition | None = None


@dataclass(frozen=True)
class PromptParts:
    """One prompt, split where it can be cached.

    Attributes:
        system_ids: int64 ``[S]``, before the image.
        text_ids: int64, behind it: question, and answer where there is one.
        background: Patches of the prefix, int64 ``[n]``.
        objects: Patches sent anew, int64 ``[m]``.
        plan: Where everything is.
        num_question: Leading tokens of ``text_ids`` that are no answer.
        fusion_positions: See :meth:`PromptLayout.fusion_positions`.
    """

    system_ids: Tensor
    text_ids: Tensor
    background: Tensor
    objects: Tensor
    plan: SequencePlan
    num_question: int
    fusion_positions: Tensor


def with_partition(item: LMMInputs, partition: PatchPartition) -> PartitionedInputs:
    """A prepared sample with its groups."""
    return PartitionedInputs(
        **{part.name: getattr(item, part.name) for part in fields(LMMInputs)}, partition=partition
    )


def split_prompt(
    layout: PromptLayout,
    item: LMMInputs,
    partition: PatchPartition | None = None,
    stale: Tensor | None = None,
) -> PromptParts:
    """Splits a prompt.

    Args:
        layout: Order and positions.
        item: Prepared sample.
        partition: Its groups; None for those it was prepared with.
        stale: Patches of the background that are sent again, int64.

    Raises:
        ConfigError: The sample was prepared by another adapter.
        DataError: The prompt is too long, or the groups are of another grid.
    """
    partition = getattr(item, "partition", None) if partition is None else partition
    if partition is None:
        raise ConfigError(f"{item.record_id}: prepared without groups of patches; use CachedLMM.prepare")
    start, end = image_span(item)
    assert end - start == layout.num_patches, item.record_id
    if len(partition.group) != layout.num_patches:
        raise DataError(
            f"{item.record_id}: groups of {len(partition.group)} patches ({partition.grid[0]} x {partition.grid[1]}), "
            f"but the vision tower sees {layout.num_patches}; make them with the model's own partitioner"
        )
    background, objects = layout.background(partition), layout.objects(partition)
    if stale is not None:
        objects = torch.cat([objects, stale]).sort().values
    text = item.input_ids[end:]
    num_question = item.prefix_length - end
    return PromptParts(
        system_ids=item.input_ids[:start],
        text_ids=text,
        background=background,
        objects=objects,
        plan=layout.plan(start, background, objects, len(text), item.record_id),
        num_question=num_question,
        fusion_positions=layout.fusion_positions(background, objects, num_question),
    )


def image_span(item: LMMInputs) -> tuple[int, int]:
    """Where the image tokens begin in the LMM's own sequence, and where the text goes on."""
    image = item.image_mask.nonzero().flatten()
    return int(image[0]), int(image[-1]) + 1


def text_places(part: PromptParts, places: Tensor) -> Tensor:
    """From places of text tokens in the LMM's own sequence (behind the image) to places in ours."""
    return places - len(part.system_ids) - len(part.plan.columns) + part.plan.prompt_length


def phrase_places(inputs: Sequence[LMMInputs], parts: Sequence[PromptParts]) -> PhraseRows:
    """Phrase tokens of a batch with one row per sample; columns are patches in raster order.

    Raises:
        PhraseWithoutTokensError: A phrase has no token.
    """
    positions, phrases = [], []
    for item, part in zip(inputs, parts, strict=True):
        tokens, ids = phrase_entries(item.phrase_tokens, item.record_id)
        positions.append(text_places(part, tokens))
        phrases.append(ids)
    return PhraseRows(
        positions=pad_sequence(positions, batch_first=True),
        phrase_ids=pad_sequence(phrases, batch_first=True, padding_value=-1),
        columns=torch.stack([part.plan.columns.clamp(min=0) for part in parts]),
        num_phrases=max(item.num_phrases for item in inputs),
        row_slices=[
            (row, slice(0, len(ids)), slice(0, item.num_phrases))
            for row, (item, ids) in enumerate(zip(inputs, phrases, strict=True))
        ],
        sample_phrase_ids=phrases,
    )
