"""A tiny model with a presence head, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from sam_parts import SIZES, make_refiner
from tiny import tiny_llava

from flmm_detseg.heads import PhraseGroundingHead, PresenceHead, UNetHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Sample

# All of a phrase head but its presence head.
MASKS = ("phrase.mask_head.", "phrase.sam.", "phrase.text_")


def tiny_model(
    seed: int = 0, *, presence: bool = True, freeze: Sequence[str] = MASKS, **settings
) -> GroundingLMM:
    """A random model whose presence head alone is trained; one without has nothing frozen."""
    lmm = tiny_llava()
    torch.manual_seed(seed)
    head = None
    if presence:
        head = PresenceHead(
            (2, 3), (1,), lmm.hidden_size, lmm.vision_channels, lmm.attention_channels, width=16, num_heads=2, cells=4,
            reads_likelihood=True,
        )  # fmt: skip
    unet = UNetHead(lmm.attention_channels, base_channels=4, upsample_input=16)
    phrase = PhraseGroundingHead(
        unet, make_refiner(), lmm.num_layers, lmm.hidden_size, SIZES.prompt_dim, presence=head
    )
    return GroundingLMM(lmm, dict(phrase=phrase), freeze=freeze if presence else (), **settings)


def some_absent(samples: Sequence[Sample]) -> list[Sample]:
    """The first phrase of each sample names nothing."""
    changed = []
    for sample in samples:
        assert sample.masks is not None
        masks = sample.masks.copy()
        masks[0] = False
        changed.append(replace(sample, masks=masks))
    return changed
