"""Step 4: two causal layers show the image to the question before the language model does; at first they change nothing."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

from flmm_detseg.cache import PreFusion

model.update(
    lmm=dict(prefusion=dict(type=PreFusion, num_layers=2), train=("separators", "projectors", "prefusion"))
)
