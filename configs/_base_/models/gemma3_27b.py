"""Gemma 3 27B, frozen: the 10 of 62 layers without a window x 32 heads = 320 attention channels on 16 x 16 tokens."""

from mmengine.config import read_base

with read_base():
    from .gemma3_4b import lmm

lmm.update(pretrained="google/gemma-3-27b-it")
