"""Answers with masks on TinyWorld: each `[SEG]` prompts the tiny SAM (LISA's route on the tiny models)."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import vqa_eval, vqa_train
    from .._base_.datasets.tinyworld_reason import (
        gcg_eval,
        reason_eval,
        reason_train,
        refcoco_eval,
        refer_train,
    )
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.models.tiny_llava_reason import lmm
    from .._base_.models.tiny_seg_heads import answer_presence, seg_token
    from .._base_.schedules.tiny_seg import *

from flmm_detseg.datasets import ImageMix, ImageSampler, collate_samples
from flmm_detseg.engine import PresenceCalibrationHook
from flmm_detseg.models import GroundingLMM

lmm.update(added_tokens=["[SEG]"], lora=dict(llm=dict(r=16, alpha=32, target="attention")))
# A stage takes a few minutes: checkpoints are written more often, so that an interruption costs little.
default_hooks.update(checkpoint=dict(interval=100))
# Plain questions go to the LMM as it was, bit for bit; `Grounder.ask(..., reasoning=True)` asks for masks.
model = dict(
    type=GroundingLMM,
    lmm=lmm,
    heads=dict(reasoning=dict(seg_token, presence=answer_presence), language=language),
    retention="switched",
    init_from=[],
    new_parts=[],
)
# Twelve images, three texts about each: an image is read once for all of them.
train_dataloader = dict(
    batch_size=36,
    num_workers=0,
    sampler=dict(type=ImageSampler),
    collate_fn=dict(type=collate_samples),
    # LISA draws 9 : 3 : 3 : 1 (class names, expressions, questions, reasoning) of an LMM that reasons already; the tiny
    # one has to learn that here.
    dataset=dict(
        type=ImageMix, datasets=[reason_train, refer_train, vqa_train], weights=[6, 3, 1], per_image=3
    ),
)
custom_hooks.append(
    dict(type=PresenceCalibrationHook, dataset=dict(reason_eval["reason_val"]), task="reasoning")
)
presence_eval = dict(reason_test=dict(reason_eval["reason_test"]))
