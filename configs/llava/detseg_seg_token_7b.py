"""LLaVA-Det-Seg on LLaVA-1.5-7B that also answers with masks: `[SEG]` beside boxes, label maps and phrases (stage 2).

xtuner train configs/llava/detseg_seg_token_7b.py --deepspeed deepspeed_zero2

It starts from the heads of stage 1 as detseg_lora does, given by
--cfg-options 'model.init_from=[PHRASE,DETECTION,SEGMENTATION]' 'model.new_parts=["lmm.","heads.reasoning."]'.
As there, no image is learned that RefCOCO(+/g), COCO or VQAv2 is evaluated on. Nobody has trained it here.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.lisa_held_out import class_train, gcg_eval, reason_eval, reason_train, refer_train
    from .._base_.models.lisa_head import seg_token
    from .detseg_lora import *

model["lmm"].update(added_tokens=["[SEG]"])
model["heads"].update(reasoning=seg_token)
# Plain questions go to the LMM as it was, bit for bit.
model.update(retention="switched")
train_dataloader["dataset"]["datasets"].update(classes=class_train, refer=refer_train, reason=reason_train)
train_dataloader["dataset"]["ratios"].update(classes=3, refer=1, reason=1)
