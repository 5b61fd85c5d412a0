"""LLaVA-OneVision 0.5B, frozen: 24 layers x 14 heads x 2 levels = 672 attention channels."""

from mmengine.config import read_base

with read_base():
    from .llava_onevision_7b import lmm

lmm.update(pretrained="llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
