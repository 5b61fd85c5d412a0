"""LFM2-VL 450M, frozen: the 6 of 16 decoder layers that have attention x 16 heads x 2 levels = 192 attention channels."""

from mmengine.config import read_base

with read_base():
    from .lfm2_vl_1_6b import lmm

lmm.update(pretrained="LiquidAI/LFM2-VL-450M")
