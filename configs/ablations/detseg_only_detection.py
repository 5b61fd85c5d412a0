"""What do boxes reach when all iterations and LoRA are theirs? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.datasets import MultiTaskMix

model.update(instance_masks=False)
model["heads"] = dict(detection=detection)
model["lmm"]["lora"] = dict(vision=model["lmm"]["lora"]["vision"])
train_dataloader["dataset"] = dict(
    type=MultiTaskMix, datasets=dict(detection=detection_train), ratios=dict(detection=1)
)
optim_wrapper["optimizer"]["groups"].pop("heads.phrase.")
