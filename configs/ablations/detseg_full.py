"""What does full fine-tuning give, and what does it cost? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(lmm=dict(lora=None, frozen=False))
# A pretrained model needs a small learning rate; without LoRA its groups go too.
optim_wrapper["optimizer"]["groups"] = {"lmm.": dict(lr_mult=0.03), "heads.phrase.": dict(lr_mult=0.5)}
