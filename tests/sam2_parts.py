"""A small SAM 2 for the refiner's tests; its inputs are those of ``sam_parts``."""

from __future__ import annotations

import torch

from flmm_detseg.refiners import SAM2Refiner, build_sam2

SIDE = 64
FIELDS = {
    "vision_config": {
        "backbone_config": {
            "hidden_size": 8,
            "image_size": [SIDE, SIDE],
            "window_positional_embedding_background_size": [4, 4],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 24, 32],
            "num_attention_heads_per_stage": [1, 2, 2, 4],
            "window_size_per_stage": [4, 4, 4, 2],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 16},
    "mask_decoder_config": {
        "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    },
}  # fmt: skip


def make_sam2():
    """Random weights (also where transformers begins with zeros) that give different logits everywhere."""
    torch.manual_seed(0)
    model = build_sam2(FIELDS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.3 if "vision_encoder" in name else 0.6
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def make_sam2_refiner(**switches) -> SAM2Refiner:
    return SAM2Refiner(make_sam2(), **switches).eval()
