"""SmolVLM2 256M, frozen: 30 layers x 9 heads x 2 levels = 540 attention channels; tiles of 8 x 8 tokens."""

from mmengine.config import read_base

with read_base():
    from .smolvlm2_2_2b import lmm

lmm.update(pretrained="HuggingFaceTB/SmolVLM2-256M-Video-Instruct")
