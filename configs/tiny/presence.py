"""Whether there is what a phrase names: a presence head on the frozen tiny LLaVA and the shipped heads, which stay."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_presence import *
    from .._base_.datasets.tinyworld_refcoco_png import refcoco_eval
    from .._base_.default_runtime import *
    from .._base_.models.tiny_llava import lmm
    from .._base_.models.unet_tiny_sam import phrase_grounding
    from .._base_.schedules.tiny_heads import *

from flmm_detseg.engine import PresenceCalibrationHook
from flmm_detseg.heads import PresenceHead
from flmm_detseg.models import GroundingLMM

phrase_grounding.update(
    presence=dict(
        type=PresenceHead,
        hidden_layers=(1, 2, 3, 4),
        vision_layers=(4,),
        width=128,
        depth=3,
        cells=14,
        dropout=0.1,
        reads_likelihood=True,
    ),
)
model = dict(
    type=GroundingLMM,
    lmm=lmm,
    heads=dict(phrase=phrase_grounding),
    # All of the phrase head but its presence head.
    freeze=["phrase.mask_head.", "phrase.sam.", "phrase.text_"],
    init_from=["data/models/tiny_heads/heads.pth"],
    new_parts=["heads.phrase.presence."],
)
# 14,400 scenes are seen.
param_scheduler[1].update(end=1800)
train_cfg.update(max_iters=1800)
optim_wrapper["optimizer"].update(lr=1e-3)
default_hooks.update(checkpoint=dict(interval=250))
custom_hooks.append(dict(type=PresenceCalibrationHook, dataset=presence_val))
