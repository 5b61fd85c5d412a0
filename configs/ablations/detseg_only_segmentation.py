"""What do label maps reach when all iterations and LoRA are theirs? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.datasets import MultiTaskMix

model.update(instance_masks=False)
model["heads"] = dict(segmentation=segmentation)
model["lmm"]["lora"] = dict(vision=model["lmm"]["lora"]["vision"])
train_dataloader["dataset"] = dict(
    type=MultiTaskMix, datasets=dict(segmentation=segmentation_train), ratios=dict(segmentation=1)
)
optim_wrapper["optimizer"]["groups"].pop("heads.phrase.")
