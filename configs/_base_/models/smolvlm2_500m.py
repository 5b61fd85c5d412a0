"""SmolVLM2 500M, frozen: 32 layers x 15 heads x 2 levels = 960 attention channels; tiles of 8 x 8 tokens."""

from mmengine.config import read_base

with read_base():
    from .smolvlm2_2_2b import lmm

lmm.update(pretrained="HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
