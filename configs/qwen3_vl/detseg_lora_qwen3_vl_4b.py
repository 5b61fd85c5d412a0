"""LLaVA-Det-Seg on Qwen3-VL-4B: boxes (also in words), label maps, phrases, answers. Nobody has trained it here.

xtuner train configs/qwen3_vl/detseg_lora_qwen3_vl_4b.py --deepspeed deepspeed_zero2

Its heads start untrained. A phrase head trained on this LMM is given by --cfg-options 'model.init_from=[PHRASE]'
'model.new_parts=["lmm.","heads.detection.","heads.segmentation."]'.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.qwen3_vl_4b import lmm
    from .._base_.recipes.detseg_lora import *

# Those that go into the decoder's first layers (DeepStack), and the last.
_tower_layers = (6, 12, 18, 24)
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
