"""Step 3 of the background cache on TinyWorld: split, background first; separators and projector learn the order."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import vqa_eval, vqa_train
    from .._base_.datasets.tinyworld_streams import streams_eval, streams_train
    from .._base_.default_runtime import *
    from .._base_.models.tiny_cached_llava import ladder_lora, lmm, stream_cache
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.schedules.tiny_heads import *

from flmm_detseg.datasets import ImageMix, ImageSampler, collate_samples
from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(language=language), init_from=[], new_parts=[])
# Eight images, six questions about each: an image is read once for all of them.
vqa_train.update(turns="all")
train_dataloader = dict(
    batch_size=48,
    num_workers=0,
    sampler=dict(type=ImageSampler),
    collate_fn=dict(type=collate_samples),
    dataset=dict(
        type=ImageMix, datasets=[vqa_train, streams_train], weights=[1, 1], per_image=6, images_per_epoch=4000
    ),
)
vqa_eval.update(streams_eval)
optim_wrapper.update(optimizer=dict(lr=1e-3))
