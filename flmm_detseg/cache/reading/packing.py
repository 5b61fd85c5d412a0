"""Several questions about one image in one sequence: image and system text once, then one text after the other.

As :mod:`flmm_detseg.lmms.capture.packing` does for a plain LLaVA: each text sees what stands before all texts, and
itself, but not the other texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.reading.layout import PromptLayout
from flmm_detseg.cache.reading.prompt_parts import PartitionedInputs, PromptParts, image_span, with_text
from flmm_detseg.lmms.capture.decoder_pass import Sequences
from flmm_detseg.lmms.capture.packing import PhraseRows, SharedRow, distinct_images, lay_out, phrase_rows


@dataclass(frozen=True)
class PackedPrompts:
    """Rows of the language model's batch (CPU tensors).

    Attributes:
        rows: What runs: per row one prompt whose text is that of all its samples, one after the other.
        members: Per row the samples in it.
        token_index: Per sample the place of each token of the LMM's own sequence in its row, int64 ``[T_i]``
            (meaningless for patches that are not sent).
        visible: bool ``[R, 1, T, T]``, True where a query (third axis) may look; None for plain causal attention.
    """

    rows: list[PromptParts]
    members: list[list[int]]
    token_index: list[Tensor]
    visible: Tensor | None

    def sequences(self, embeds: Tensor) -> Sequences:
        """What the language model reads, of embeddings ``[R, T, d]``."""
        positions = pad_sequence([row.plan.position_ids for row in self.rows], batch_first=True)
        return Sequences(
            embeds,
            positions=positions,
            visible=self.visible,
            members=self.members,
            token_index=self.token_index,
        )


def share_images(
    inputs: Sequence[PartitionedInputs], image_keys: Sequence[str | None] | None
) -> list[list[int]]:
    """Finds samples that can share a row: same pixels, groups and system text.

    Args:
        inputs: Prepared samples.
        image_keys: Per sample a key or None, which is never equal to another.

    Returns:
        Per row the samples in it, in order of their first one.
    """
    sharing: dict[tuple[int, bytes, bytes], list[int]] = {}
    for index, (item, owner) in enumerate(zip(inputs, distinct_images(inputs, image_keys), strict=True)):
        system_ids = item.input_ids[: image_span(item)[0]].numpy().tobytes()
        sharing.setdefault((owner, item.partition.group.tobytes(), system_ids), []).append(index)
    return list(sharing.values())


def pack_prompts(
    layout: PromptLayout,
    leads: Sequence[PromptParts],
    inputs: Sequence[PartitionedInputs],
    members: Sequence[Sequence[int]],
) -> PackedPrompts:
    """Puts the texts of each row after its image.

    Args:
        layout: Order and positions.
        leads: Per row the prompt of its first sample; its groups (and changed patches) apply to all of them.
        inputs: Prepared samples.
        members: Per row the samples in it.

    Returns:
        A row per group, and where the tokens of every sample are in it.

    Raises:
        DataError: A prompt alone is too long.
    """
    shared, rows = [], []
    for lead, samples in zip(leads, members, strict=True):
        start = lead.plan.prompt_length
        parts = [with_text(layout, lead, inputs[member]) for member in samples]
        image = torch.cat([torch.arange(len(lead.system_ids)), lead.plan.columns.clamp(min=0)])
        rests = [part.plan.position_ids[None, start:] for part in parts]
        shared.append(SharedRow(image, lead.plan.position_ids[None, :start], rests))
        # Where each text begins among the texts.
        begins = [0, *accumulate(len(part.text_ids) for part in parts)]
        image_size = len(lead.background) + len(lead.objects)
        fusion = [part.fusion_positions[image_size:] for part in parts]
        rows.append(
            replace(
                lead,
                text_ids=torch.cat([part.text_ids for part in parts]),
                questions=tuple(
                    (begin + first, begin + last)
                    for begin, part in zip(begins, parts)
                    for first, last in part.questions
                ),
                fusion_positions=torch.cat([lead.fusion_positions[:image_size], *fusion]),
            )
        )
    found = lay_out(shared, members)
    rows = [
        replace(row, plan=replace(row.plan, position_ids=positions[0]))
        for row, positions in zip(rows, found.positions, strict=True)
    ]
    return PackedPrompts(rows, [list(samples) for samples in members], found.token_index, found.visible)


def phrase_places(inputs: Sequence[PartitionedInputs], packed: PackedPrompts) -> PhraseRows:
    """Phrase tokens of a packed batch; columns are patches in raster order.

    Args:
        inputs: The samples, in the order in which they were packed.
        packed: Rows and places of their sequences.

    Returns:
        Places of the phrase tokens of all rows, and what belongs to which sample.

    Raises:
        PhraseWithoutTokensError: A phrase has no token.
    """
    columns = [row.plan.columns.clamp(min=0) for row in packed.rows]
    return phrase_rows(inputs, packed.members, packed.token_index, columns)
