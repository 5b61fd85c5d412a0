"""Rung 4: two causal layers let the question see the image before the language model does; they begin as nothing."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

from flmm_detseg.cache import PreFusion

model.update(
    lmm=dict(prefusion=dict(type=PreFusion, num_layers=2), train=("separators", "projectors", "prefusion"))
)
