"""Shared part of recipes: LLaVA-Det-Seg without its LMM, stage 2; a recipe adds `model.lmm`.

Boxes (also in words), label maps, phrases and answers in one LoRA-adapted model. Where this is not what the method was
first planned to be, and why:

- LoRA in stage 1: stage 1 trains heads on the LMM as it is. Its three files then fit together, as all read one LMM; LoRA
  that grew with one head would not fit the others, and untrained heads have nothing to teach a tower.
- LoRA on the decoder's convolutions (rank 4): they are trained whole. On TinyWorld both have the same mIoU, with 100,000
  parameters fewer of 1.3 million; `model.head_lora=dict(segmentation=dict(r=4, alpha=8))` turns it on after stage 1.
- A LoRA group for each task (gradient isolation): on TinyWorld `model.isolate` cost detection 0.9 points of AP and gained
  nothing that is more than noise. All tasks therefore change the same LoRA.
- LoRA of the language model on QKV only: the output projection is in too (`target="attention"`).
- Batch 32: 2 samples on each of 8 GPUs are 16; `optim_wrapper.accumulative_counts=2` makes it 32.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.coco_ade_vqa import *
    from ..datasets.refcoco_png_held_out import phrase_train, png_eval, refcoco_eval
    from ..default_runtime import *
    from ..models.coco_ade_heads import detection, language, segmentation
    from ..models.unet_sam_l import phrase_grounding
    from ..schedules.adamw_detseg import *

from flmm_detseg.datasets import MultiTaskMix, TaskBatchSampler, TaskSampler, collate_samples
from flmm_detseg.models import FixedWeighting, GroundingLMM, TaskBalancer

language.update(distill_weight=0.5, temperature=2.0)
model = dict(
    type=GroundingLMM,
    lmm=dict(
        lora=dict(
            vision=dict(r=8, alpha=32, target="qkv"),
            llm=dict(r=16, alpha=64, target="attention"),
            projector=dict(r=8, alpha=32, target="all-linear"),
        ),
        gradient_checkpointing=True,
    ),
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
