"""Grounding without training: three attention heads of the tiny LLaVA, chosen without a mask, and the tiny SAM as it is.

The ranking was made as the card of the model says (``data/models/tiny_llava/README.md``).
Nothing is trained, so there is no checkpoint: ``flmm-detseg evaluate refcoco tiny/training_free``.
"""

from mmengine.config import read_base

with read_base():
    from .frozen_tiny_llava_refcoco_png import *

from flmm_detseg.heads import AttentionMaskHead

model["lmm"].update(
    rows=dict(merge="mean", heads="top:3", ranking="data/models/tiny_llava/head_ranking.json")
)
model["heads"]["phrase"]["mask_head"] = dict(type=AttentionMaskHead)
model["heads"]["phrase"]["sam"].update(use_text=False)
