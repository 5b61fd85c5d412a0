"""LISA on Qwen3-VL-4B: answers with masks by SAM ViT-H. Nobody has trained it here.

xtuner train configs/qwen3_vl/lisa_qwen3_vl_4b.py --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.qwen3_vl_4b import lmm
    from .._base_.recipes.lisa import *

model.update(lmm=lmm)
