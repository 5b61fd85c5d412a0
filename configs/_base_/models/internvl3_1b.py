"""InternVL3-1B, frozen: 24 layers x 14 heads x 2 levels = 672 attention channels; tiles of 16 x 16 tokens."""

from mmengine.config import read_base

with read_base():
    from .internvl3_8b import lmm

lmm.update(pretrained="OpenGVLab/InternVL3-1B-hf")
