"""Stage 2 of LLaVA-Det-Seg on TinyWorld: boxes, label maps, phrases and answers in one LoRA-adapted model."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import *
    from .._base_.datasets.tinyworld_refcoco_png import png_eval, png_train, refcoco_eval, refcoco_split_train
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import detection, language, segmentation
    from .._base_.models.tiny_llava import lmm
    from .._base_.models.unet_tiny_sam import phrase_grounding
    from .._base_.schedules.tiny_joint import *

from flmm_detseg.datasets import ConcatMix, MultiTaskMix, TaskBatchSampler, TaskSampler, collate_samples
from flmm_detseg.models import FixedWeighting, GroundingLMM, TaskBalancer

lmm.update(
    lora=dict(
        vision=dict(r=8, alpha=32, target="qkv"),
        llm=dict(r=16, alpha=64, target="attention"),
        projector=dict(r=8, alpha=32, target="all-linear"),
    )
)
# A stage takes a few minutes: checkpoints are written more often, so that an interruption costs little.
default_hooks.update(checkpoint=dict(interval=100))
model = dict(
    type=GroundingLMM,
    lmm=lmm,
    heads=dict(detection=detection, segmentation=segmentation, phrase=phrase_grounding, language=language),
    balancer=dict(type=TaskBalancer, weighting=dict(type=FixedWeighting)),
    retention="always",
    l2sp=0.0,
    instance_masks=True,
    init_from=[],
    new_parts=[],
)
train_dataloader = dict(
    batch_size=12,
    num_workers=0,
    sampler=dict(type=TaskSampler, mode="one_task"),
    batch_sampler=dict(type=TaskBatchSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(
        type=MultiTaskMix,
        datasets=dict(
            detection=detection_train,
            segmentation=segmentation_train,
            phrase=dict(type=ConcatMix, datasets=[png_train, refcoco_split_train]),
            vqa=vqa_train,
        ),
        ratios=dict(detection=2, segmentation=2, phrase=3, vqa=3),
    ),
)
