"""LISA on LLaVA-1.5-13B: answers with masks by SAM ViT-H. Nobody has trained it here.

xtuner train configs/llava/lisa_llava15_13b.py --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava15_13b import lmm
    from .._base_.recipes.lisa import *

model.update(lmm=lmm)
