"""Gemma 3 12B, frozen: the 8 of 48 layers without a window x 16 heads = 128 attention channels on 16 x 16 tokens."""

from mmengine.config import read_base

with read_base():
    from .gemma3_4b import lmm

lmm.update(pretrained="google/gemma-3-12b-it")
