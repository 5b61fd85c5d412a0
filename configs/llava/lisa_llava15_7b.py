"""LISA on LLaVA-1.5-7B: answers with masks by SAM ViT-H. Nobody has trained it here.

xtuner train configs/llava/lisa_llava15_7b.py --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava15_7b import lmm
    from .._base_.recipes.lisa import *

model.update(lmm=lmm)
