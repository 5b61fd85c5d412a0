"""LLaVA-1.5-13B, frozen: 40 layers x 40 heads = 1600 attention channels on 24 x 24 patches."""

from mmengine.config import read_base

with read_base():
    from .llava15_7b import lmm

lmm.update(pretrained="llava-hf/llava-1.5-13b-hf")
