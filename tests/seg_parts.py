"""Answers with mask tokens, and small models that read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sam2_parts import make_sam2_refiner
from sam_parts import make_refiner
from tiny import make_sample, tiny_llava

from flmm_detseg.heads import LanguageHead, PointerHead, SegTokenHead, VisionNeck
from flmm_detseg.language.segment_names import MASK_TOKEN, mask_token_spans
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Phrase, Sample

NAMES = ("the red star", "a blue ring", "the green square")
HEADS: dict[str, dict[str, Any]] = {
    "sam": dict(type=SegTokenHead, sam=dict(type=make_refiner)),
    "sam2": dict(type=SegTokenHead, sam=dict(type=make_sam2_refiner)),
    "pointer": dict(
        type=PointerHead,
        neck=dict(type=VisionNeck, vision_layers=(1, 3), channels=8, scales=(2, 1)),
        embed_size=8,
        channels=8,
        rates=(1, 2),
    ),
}


def reasoning_sample(index: int = 0, count: int = 2, **changes: Any) -> Sample:
    """A question and its answer with ``count`` mask tokens; a rectangle as mask of each."""
    sample = make_sample(index, num_phrases=count, prompt="what could roll ?")
    words = " , ".join(f"{NAMES[(index + k) % len(NAMES)]} {MASK_TOKEN}" for k in range(count))
    text = f"{words or 'a star is on the right'} ."
    phrases = tuple(Phrase((span,)) for span in mask_token_spans(text))
    masks = sample.masks if count else np.zeros((0, *sample.image_size), dtype=bool)
    return replace(sample, text=text, phrases=phrases, masks=masks, task="reasoning", **changes)


def make_model(head: str = "sam", *, lora: bool = True, retention: str | None = None, **changes: Any):
    """A tiny LMM with ``[SEG]``, a head that reads it, and the language head."""
    lmm = tiny_llava(lora=dict(llm=dict(r=2, alpha=4)) if lora else None, added_tokens=[MASK_TOKEN])
    torch.manual_seed(1)
    return GroundingLMM(
        lmm,
        dict(reasoning={**HEADS[head], **changes}, language=LanguageHead()),
        retention=retention,
    )


@torch.no_grad()
def speak(model: GroundingLMM, text: str) -> None:
    """From now on the adapted LMM answers every question with this text (of words that the tokenizer has whole)."""
    lmm = getattr(model.lmm, "lmm", model.lmm)  # or the one that the background cache's reader wraps
    tokenizer = lmm.processor.tokenizer
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, lmm.end_ids[0]]
    head = lmm.unembed
    steps = iter(())

    def push(_: torch.nn.Module, given: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        if not head.active or torch.is_grad_enabled() or logits.shape[1] != 1:
            return logits
        token = next(steps, None)
        if token is None:
            steps = iter(ids)
            token = next(steps)
        pushed = logits.clone()
        pushed[..., token] = logits.amax() + 1
        return pushed

    head.register_forward_hook(push)
