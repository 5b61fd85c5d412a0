"""Whole answers on TinyWorld: words, boxes in the tiny LLaVA's number words, and a mask for each `[SEG]`."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import vqa_eval
    from .._base_.datasets.tinyworld_joint import joint_eval, joint_train
    from .._base_.datasets.tinyworld_reason import gcg_eval, reason_eval, refcoco_eval, refer_train
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.models.tiny_llava import lmm
    from .._base_.models.tiny_seg_heads import seg_token
    from .._base_.schedules.tiny_seg import *

from flmm_detseg.datasets import MultiTaskMix, TaskBatchSampler, TaskSampler, collate_samples
from flmm_detseg.models import GroundingLMM

# The tiny LLaVA knows the tags and marks of the template, but has never written them (docs/text_formats.md).
lmm.update(
    added_tokens=dict(tokens=["[SEG]"], words=["answer", "detections", "segmentations", ":", ";"]),
    lora=dict(llm=dict(r=16, alpha=32, target="all-linear")),
)
# A stage takes a few minutes: checkpoints are written more often, so that an interruption costs little.
default_hooks.update(checkpoint=dict(interval=100))
# Plain questions go to the LMM as it was, bit for bit; whole answers come from the adapted one.
model = dict(
    type=GroundingLMM,
    lmm=lmm,
    heads=dict(reasoning=seg_token, language=language),
    retention="switched",
    init_from=[],
    new_parts=[],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=TaskSampler, mode="one_task"),
    batch_sampler=dict(type=TaskBatchSampler),
    collate_fn=dict(type=collate_samples),
    # Expressions teach which of several objects of a kind is meant.
    dataset=dict(
        type=MultiTaskMix,
        datasets=dict(joint=joint_train, refer=refer_train),
        ratios=dict(joint=4, refer=1),
    ),
)
