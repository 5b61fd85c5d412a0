"""Small SAM models and inputs for the refiner's tests."""

from __future__ import annotations

import numpy as np
import torch

from flmm_detseg.refiners import SAMRefiner, SamSizes, TextPrompt, build_sam

SIZES = SamSizes(
    embed_dim=16,
    depth=2,
    num_heads=2,
    global_attn_indexes=(1,),
    image_size=64,
    patch_size=8,
    window_size=4,
    prompt_dim=16,
    decoder_num_heads=2,
    decoder_mlp_dim=32,
    iou_hidden_dim=16,
)
IMAGE_SIZES = [(40, 64), (64, 64), (31, 17)]
COUNTS = [2, 3, 1]


def make_refiner(**switches) -> SAMRefiner:
    torch.manual_seed(0)
    refiner = SAMRefiner(build_sam(SIZES), **switches).eval()
    with torch.no_grad():  # random SAM weights give nearly the same logits everywhere
        for parameter in refiner.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return refiner


def make_inputs(counts=COUNTS, seed=0):
    """Images, coarse logits and text of a batch; every phrase has another number of text tokens."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in IMAGE_SIZES]
    coarse = [
        4 * torch.randn(count, max(1, height // 4), max(1, width // 4), generator=generator)
        for count, (height, width) in zip(counts, IMAGE_SIZES)
    ]
    text = []
    for count in counts:
        # Tokens of the phrases alternate, as those of interleaved phrases do.
        ids = torch.tensor(
            [phrase for step in range(4) for phrase in range(count) if step <= phrase], dtype=torch.long
        )
        text.append(TextPrompt(torch.randn(len(ids), SIZES.prompt_dim, generator=generator), ids))
    return images, coarse, text
