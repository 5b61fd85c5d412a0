"""Shared part of recipes: a LISA that its authors trained, as `flmm-detseg import lisa` writes it.

A recipe adds where its LMM and its SAM are, and `load_from`. The LMM stays as it is; a training goes on from the
published head, on questions that ask for masks.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.lisa import class_train, reason_train, refer_train
    from .lisa import *

from flmm_detseg.datasets import MultiTaskMix
from flmm_detseg.heads import SegTokenHead
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.models import GroundingLMM
from flmm_detseg.refiners import SAMRefiner

model = dict(
    type=GroundingLMM,
    lmm=dict(type=LlavaAdapter.from_pretrained, dtype="bfloat16", prompt_template="llava_v1_marked"),
    heads=dict(
        reasoning=dict(
            type=SegTokenHead,
            sam=dict(type=SAMRefiner.from_pretrained, dtype="bfloat16", attention="sdpa"),
            train_decoder=True,
            position="before",
        )
    ),
    retention="frozen",
    init_from=[],
    new_parts=[],
)
train_dataloader.dataset = dict(
    type=MultiTaskMix,
    datasets=dict(classes=class_train, refer=refer_train, reason=reason_train),
    ratios=dict(classes=9, refer=3, reason=1),
)
