"""LLaVA-Det-Seg on Qwen2.5-VL 7B: boxes (also in words), label maps, phrases, answers. Nobody has trained it here.

xtuner train configs/qwen2_5_vl/detseg_lora_qwen2_5_vl_7b.py --deepspeed deepspeed_zero2

Its heads start untrained. A phrase head trained on this LMM is given by --cfg-options 'model.init_from=[PHRASE]'
'model.new_parts=["lmm.","heads.detection.","heads.segmentation."]'.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.qwen2_5_vl_7b import lmm
    from .._base_.recipes.detseg_lora import *

# The blocks that look at the whole image, not within windows.
_tower_layers = (8, 16, 24, 32)
model.update(
    lmm=lmm,
    heads=dict(
        detection=dict(neck=dict(vision_layers=_tower_layers)),
        segmentation=dict(neck=dict(vision_layers=_tower_layers)),
    ),
)
# The merger lies within the tower, and its LoRA learns as fast as the language model's.
optim_wrapper["optimizer"]["groups"] = {
    ".vision.weight": dict(lr_mult=0.5, decay_mult=0.0),
    ".lora_": dict(lr_mult=2.0, decay_mult=0.0),
}
