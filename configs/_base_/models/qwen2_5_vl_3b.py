"""Qwen2.5-VL 3B, frozen: 36 layers x 16 heads = 576 attention channels at the image's own aspect."""

from mmengine.config import read_base

with read_base():
    from .qwen2_5_vl_7b import lmm

lmm.update(pretrained="Qwen/Qwen2.5-VL-3B-Instruct")
