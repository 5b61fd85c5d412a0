"""Questions that point at an object by a point, a box or a mask; the tiny LLaVA stays as it is, only the reader learns."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_regions import regions_eval as vqa_eval
    from .._base_.datasets.tinyworld_regions import regions_train
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.models.tiny_llava import lmm
    from .._base_.schedules.tiny_heads import *

from flmm_detseg.datasets import ImageMix, ImageSampler, collate_samples
from flmm_detseg.lmms.added.region_tokens import RegionTokens
from flmm_detseg.models import GroundingLMM

lmm.update(parts=dict(regions=dict(type=RegionTokens, layers=(-2,))))
# Questions without regions go to the LMM as it was, bit for bit.
model = dict(type=GroundingLMM, lmm=lmm, heads=dict(language=language), retention="switched")
# Eight images, six questions about each: an image is read once for all of them.
train_dataloader = dict(
    batch_size=48,
    num_workers=0,
    sampler=dict(type=ImageSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(type=ImageMix, datasets=[regions_train], weights=[1], per_image=6),
)
