"""InternVL3.5-4B, frozen: 36 layers x 32 heads x 2 levels = 2304 attention channels; tiles of 16 x 16 tokens."""

from mmengine.config import read_base

with read_base():
    from .internvl3_5_8b import lmm

lmm.update(pretrained="OpenGVLab/InternVL3_5-4B-HF")
