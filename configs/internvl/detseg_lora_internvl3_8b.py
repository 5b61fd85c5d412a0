"""LLaVA-Det-Seg on InternVL3-8B: boxes (also in words), label maps, phrases, answers. Nobody has trained it here.

xtuner train configs/internvl/detseg_lora_internvl3_8b.py --deepspeed deepspeed_zero2

Its heads start untrained. A phrase head trained on this LMM is given by --cfg-options 'model.init_from=[PHRASE]'
'model.new_parts=["lmm.","heads.detection.","heads.segmentation."]'.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.internvl3_8b import lmm
    from .._base_.recipes.detseg_lora import *

# The projector reads the last one.
_tower_layers = (6, 12, 18, 24)
model.update(
    lmm=lmm,
    heads=dict(
        detection=dict(neck=dict(vision_layers=_tower_layers)),
        segmentation=dict(neck=dict(vision_layers=_tower_layers)),
    ),
)
