"""Cached LLaVAs with tiny random weights, and images that share a background."""

from __future__ import annotations

import numpy as np
import torch
from tiny import make_sample, tiny_llava

from flmm_detseg.cache.cached_lmm import CachedLMM
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.regions.sources import GivenRegions, Partitioner
from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.structures import Sample

# Position embeddings and attention of a new tower are nearly uniform: nothing would depend on anything.
_LOUDER = 20


def cached_llava(
    *,
    positions: str = "raster",
    letterbox: str = "background",
    projectors: str = "shared",
    train: tuple[str, ...] = (),
    train_layers: int = 0,
    prefusion: PreFusion | None = None,
    order: str = "background",
    dilate: int = 0,
    partitioner: Partitioner | None = None,
    stale_share: tuple[float, ...] | None = None,
    **arguments,
) -> CachedLMM:
    """A 4 x 4 grid of 14-pixel patches; objects are ``Sample.meta["objects_xyxy"]``."""
    lmm = tiny_llava(**arguments)
    with torch.no_grad():
        tower = tower_body(lmm.model.model.vision_tower)
        generator = torch.Generator().manual_seed(7)
        table = tower.embeddings.position_embedding.weight
        table.copy_(torch.randn(table.shape, generator=generator))
        for layer in tower.encoder.layers:
            layer.self_attn.q_proj.weight.mul_(_LOUDER)
    model = CachedLMM(
        lmm,
        partitioner or Partitioner(GivenRegions("meta"), dilate=dilate),
        positions=positions,
        letterbox=letterbox,
        projectors=projectors,
        prefusion=prefusion,
        order=order,
        train=train,
        train_layers=train_layers,
        stale_share=stale_share,
    )
    if prefusion is not None:
        # As the frozen LMM.
        model.prefusion.eval()
        # Other draws than those of the LLaVA; large enough to matter.
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, weight in model.prefusion.named_parameters():
                if weight.dim() > 1 and name != "layers.gates":
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    if projectors == "separate":
        with torch.no_grad():
            for weight in model.object_projector.parameters():
                weight.mul_(1.5)
    return model


@torch.no_grad()
def endless(model: CachedLMM) -> CachedLMM:
    """Whose random answers do not end by chance: the draws of a seed differ between releases of transformers."""
    model.lmm.model.lm_head.weight[model.processor.tokenizer.eos_token_id] = 0
    return model


def boxed_sample(index: int = 0, *, image_size: tuple[int, int] = (48, 72), **arguments) -> Sample:
    """A sample of :func:`tiny.make_sample` with one or two objects."""
    sample = make_sample(index, image_size=image_size, **arguments)
    height, width = image_size
    boxes = [[width * 0.3, height * 0.3, width * 0.6, height * 0.6], [0, 0, 8, 8]][: 1 + index % 2]
    sample.meta["objects_xyxy"] = boxes
    return sample


def screens(count: int, *, seed: int = 0, size: tuple[int, int] = (56, 56)) -> list[np.ndarray]:
    """Images with one wallpaper; a box that covers patches 5 and 6 (of 4 x 4) shows something else each time."""
    rng = np.random.default_rng(seed)
    wallpaper = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = []
    for _ in range(count):
        image = wallpaper.copy()
        image[14:28, 14:42] = rng.integers(0, 256, (14, 28, 3), dtype=np.uint8)
        found.append(image)
    return found


SCREEN_BOX = [[14, 14, 42, 28]]
