"""InternVL3.5-1B, frozen: 28 layers x 16 heads x 2 levels = 896 attention channels; tiles of 16 x 16 tokens."""

from mmengine.config import read_base

with read_base():
    from .internvl3_5_8b import lmm

lmm.update(pretrained="OpenGVLab/InternVL3_5-1B-HF")
