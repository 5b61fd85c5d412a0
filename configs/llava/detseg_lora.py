"""LLaVA-Det-Seg on LLaVA-1.5-7B: boxes (also in words), label maps, phrases, answers in one LoRA-adapted model (stage 2).

xtuner train configs/llava/detseg_lora.py --deepspeed deepspeed_zero2

It starts from the heads of stage 1 (detseg_stages_7b names the configs), given by
--cfg-options 'model.init_from=[PHRASE,DETECTION,SEGMENTATION]' 'model.new_parts=["lmm."]'.
Alone it starts from random heads. Where it departs from the method's plan (LoRA in stage 1, decoder LoRA, gradient
isolation, batch 32), `_base_/recipes/detseg_lora.py` says why.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava15_7b import lmm
    from .._base_.recipes.detseg_lora import *

model.update(lmm=lmm)
