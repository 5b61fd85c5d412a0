"""Qwen3-VL-8B, frozen: 36 layers x 32 heads = 1152 attention channels; the grid follows the image."""

from mmengine.config import read_base

with read_base():
    from .qwen3_vl_4b import lmm

lmm.update(pretrained="Qwen/Qwen3-VL-8B-Instruct")
