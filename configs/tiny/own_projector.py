"""A projector of its own, learned from random weights on TinyWorld's questions; the tiny LLaVA stays as it is."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import vqa_eval, vqa_train
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.models.tiny_llava import lmm
    from .._base_.schedules.tiny_heads import *

from flmm_detseg.datasets import ImageMix, ImageSampler, collate_samples
from flmm_detseg.lmms.added.own_projector import OwnProjector
from flmm_detseg.models import GroundingLMM

# For another kind of picture beside photos: dict(depth=dict(type=OwnProjector, modalities=["depth"])), and
# "modalities": ["rgb", "depth"] for the two files of "image" in each line of the questions. One for several kinds:
# routed_projector.py.
lmm.update(parts=dict(projector=dict(type=OwnProjector, reset=True)))
model = dict(type=GroundingLMM, lmm=lmm, heads=dict(language=language))
# Eight images, six questions about each: an image is read once for all of them.
vqa_train.update(turns="all")
train_dataloader = dict(
    batch_size=48,
    num_workers=0,
    sampler=dict(type=ImageSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(type=ImageMix, datasets=[vqa_train], weights=[1], per_image=6),
)
