"""LLaVA-Det-Seg on LLaVA-1.5-7B: boxes (also in words), label maps, phrases, answers in one LoRA-adapted model (stage 2).

xtuner train configs/llava/detseg_lora.py --deepspeed deepspeed_zero2

It starts from the heads of stage 1 (detseg_stages_7b names the configs), given by
--cfg-options 'model.init_from=[PHRASE,DETECTION,SEGMENTATION]' 'model.new_parts=["lmm."]'.
Alone it starts from random heads.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import *
    from .._base_.datasets.refcoco_png_held_out import phrase_train, png_eval, refcoco_eval
    from .._base_.default_runtime import *
    from .._base_.models.coco_ade_heads import detection, language, segmentation
    from .._base_.models.llava15_7b import lmm
    from .._base_.models.unet_sam_l import phrase_grounding
    from .._base_.schedules.adamw_detseg import *

from flmm_detseg.datasets import MultiTaskMix, TaskBatchSampler, TaskSampler, collate_samples
from flmm_detseg.models import FixedWeighting, GroundingLMM, TaskBalancer

lmm.update(
    lora=dict(
        vision=dict(r=8, alpha=32, target="qkv"),
        llm=dict(r=16, alpha=64, target="attention"),
        projector=dict(r=8, alpha=32, target="all-linear"),
    ),
    gradient_checkpointing=True,
)
language.update(distill_weight=0.5, temperature=2.0)
model = dict(
    type=GroundingLMM,
    lmm=lmm,
    heads=dict(detection=detection, segmentation=segmentation, phrase=phrase_grounding, language=language),
    balancer=dict(type=TaskBalancer, weighting=dict(type=FixedWeighting)),
    retention="always",
    l2sp=1e-4,
    instance_masks=True,
    init_from=[],
    new_parts=[],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=TaskSampler, mode="one_task"),
    batch_sampler=dict(type=TaskBatchSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(
        type=MultiTaskMix,
        datasets=dict(
            detection=detection_train,
            segmentation=segmentation_train,
            phrase=phrase_train,
            vqa=vqa_train,
            joint=joint_train,
        ),
        ratios=dict(detection=3, segmentation=2, phrase=3, vqa=2, joint=1),
    ),
)
