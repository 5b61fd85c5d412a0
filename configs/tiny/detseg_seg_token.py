"""LLaVA-Det-Seg that also answers with masks: stage 2 with `[SEG]` beside boxes, label maps and phrases, on TinyWorld.

The tiny LLaVA of this recipe knows the reasoning set's words; detseg_seg_token_stages trains the heads of stage 1 on it.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_reason import (
        classes_train,
        gcg_eval,
        reason_eval,
        reason_train,
        refer_train,
    )
    from .._base_.models.tiny_seg_heads import seg_token
    from .detseg_joint import *

model["lmm"].update(pretrained="data/models/tiny_llava_reason", added_tokens=["[SEG]"])
model["heads"].update(reasoning=seg_token)
# Plain questions go to the LMM as it was, bit for bit.
model.update(retention="switched")
train_dataloader["dataset"]["datasets"].update(classes=classes_train, refer=refer_train, reason=reason_train)
train_dataloader["dataset"]["ratios"].update(classes=1, refer=2, reason=4)
