"""Gemma 3 4B with pan and scan, frozen: the 5 of 34 layers without a window x 8 heads x 2 levels = 80 attention channels."""

from mmengine.config import read_base

with read_base():
    from .gemma3_4b import lmm

from flmm_detseg.lmms.families.gemma3 import Gemma3PanAdapter

lmm.update(type=Gemma3PanAdapter.from_pretrained)
