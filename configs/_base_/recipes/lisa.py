"""Shared part of recipes: LISA without its LMM; a recipe adds `model.lmm`.

Answers with `[SEG]`, each of which prompts SAM. Where this is not LISA as published:

- The rows of `[SEG]` are trained, not the whole tables (`added_tokens=dict(tokens=["[SEG]"], train="tables")` does
  that): only so can plain questions go to the LMM as it was (`retention="switched"`), bit for bit.
- SAM is prompted for answers without a mask token as for any other: not at all.
- Of several classes or sentences about an image each is a sample of its own; those of one batch share the image.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.coco_ade_vqa import vqa_eval
    from ..datasets.lisa import gcg_eval, grefcoco_eval, lisa_train, reason_eval, refcoco_eval
    from ..default_runtime import *
    from ..models.coco_ade_heads import language
    from ..models.lisa_head import seg_token
    from ..schedules.adamw_lisa import *

from flmm_detseg.datasets import TaskBatchSampler, TaskSampler, collate_samples
from flmm_detseg.models import GroundingLMM

model = dict(
    type=GroundingLMM,
    lmm=dict(
        added_tokens=["[SEG]"],
        lora=dict(llm=dict(r=8, alpha=16, dropout=0.05, target=["q_proj", "v_proj"])),
        gradient_checkpointing=True,
    ),
    heads=dict(reasoning=seg_token, language=language),
    retention="switched",
    init_from=[],
    new_parts=[],
)
# A step holds samples of one kind.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=TaskSampler, mode="one_task"),
    batch_sampler=dict(type=TaskBatchSampler),
    collate_fn=dict(type=collate_samples),
    dataset=lisa_train,
)
