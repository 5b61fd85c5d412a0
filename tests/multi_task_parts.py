"""A model with four heads on a tiny LMM, and samples for each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny import make_sample, tiny_llava

from flmm_detseg.heads import (
    DetectionHead,
    LanguageHead,
    PhraseGroundingHead,
    SemanticSegHead,
    UNetHead,
    VisionNeck,
)
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import DenseTargets, Sample

LORA = {
    "vision": {"r": 2, "alpha": 4, "target": "qkv"},
    "llm": {"r": 2, "alpha": 4, "target": "attention"},
    "projector": {"r": 2, "alpha": 4, "target": "all-linear"},
}
NECK = {"type": VisionNeck, "vision_layers": (1, 2), "channels": 8, "scales": (2, 1)}
HEADS = {
    "detection": {
        "type": DetectionHead, "neck": NECK, "class_names": ["a", "b"], "feat_channels": 8, "stacked_convs": 1,
    },
    "segmentation": {
        "type": SemanticSegHead, "neck": NECK, "class_names": ["a", "b", "c"], "channels": 8, "rates": (1, 2),
    },
    "phrase": {
        "type": PhraseGroundingHead,
        "mask_head": {"type": UNetHead, "base_channels": 2, "num_stages": 2, "upsample_input": 8},
        "sam": None,
    },
    "language": {"type": LanguageHead, "distill_weight": 0.5},
}  # fmt: skip


def make_model(**changes) -> GroundingLMM:
    settings = {"lmm": tiny_llava(lora=LORA, frozen=False), "heads": HEADS, **changes}
    torch.manual_seed(0)
    return GroundingLMM(**settings)


def dense_sample(index: int, task: str) -> Sample:
    base = make_sample(index, num_phrases=0)
    height, width = base.image_size
    semantic = np.zeros((height, width), dtype=np.uint8)
    semantic[: height // 2] = 1 + index % 2
    dense = DenseTargets(
        boxes_xyxy=np.array([[4, 4, width * 0.6, height * 0.7]], dtype=np.float32),
        labels=np.array([index % 2]),
        semantic=semantic,
    )
    return replace(base, text="", task=task, dense=dense)


def question(index: int = 0) -> Sample:
    return replace(make_sample(index, num_phrases=0), prompt="the star ?", text="red star", task="vqa")


def batch() -> list[Sample]:
    return [
        make_sample(0),
        dense_sample(1, "detection"),
        question(2),
        dense_sample(3, "segmentation"),
        dense_sample(4, "detection"),
        make_sample(5),
    ]


def objective(model: GroundingLMM, samples: list[Sample]) -> torch.Tensor:
    return model.parse_losses(model.loss(samples))[0]


def move_lora(model: GroundingLMM, seed: int = 1) -> None:
    """B starts at zero: move it, so that LoRA does something and A gets a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.lmm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
