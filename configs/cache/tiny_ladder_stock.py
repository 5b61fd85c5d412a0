"""Step 0 of the background cache on TinyWorld: the unmodified LLaVA. Nothing is trained: for evaluation only."""

from mmengine.config import read_base

with read_base():
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import language
    from .._base_.models.tiny_llava_streams import lmm
    from .._base_.schedules.tiny_heads import *
    from .tiny_separators_projector import optim_wrapper, train_dataloader, vqa_eval

from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(language=language), init_from=[], new_parts=[])
