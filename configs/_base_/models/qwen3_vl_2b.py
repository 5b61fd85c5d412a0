"""Qwen3-VL-2B, frozen: 28 layers x 16 heads = 448 attention channels; the grid follows the image."""

from mmengine.config import read_base

with read_base():
    from .qwen3_vl_4b import lmm

lmm.update(pretrained="Qwen/Qwen3-VL-2B-Instruct")
