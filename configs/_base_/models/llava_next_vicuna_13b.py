"""LLaVA-NeXT (1.6) vicuna 13B, frozen: 40 layers x 40 heads x 2 levels (coarse, fine) = 3200 attention channels."""

from mmengine.config import read_base

with read_base():
    from .llava_next_vicuna_7b import lmm

lmm.update(pretrained="llava-hf/llava-v1.6-vicuna-13b-hf")
