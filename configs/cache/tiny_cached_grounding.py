"""F-LMM's phrase head on step 5 of the background cache's ladder: the head alone is trained, the LMM stays as it is.

After the ladder (tiny_ladder_stages): python tools/train.py configs/cache/tiny_cached_grounding.py. Another LMM of the
same kind: --cfg-options 'model.init_from=[FILE]'. What is trained here is served by tiny_stream_grounding.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_refcoco_png import *
    from .._base_.default_runtime import *
    from .._base_.models.unet_tiny_sam import phrase_grounding
    from .._base_.schedules.tiny import *
    from .tiny_cached_lora import model, stream_cache, vqa_eval

model.update(
    heads=dict(phrase=phrase_grounding),
    train_lmm=False,
    init_from=["work_dirs/tiny_ladder_stages/rung5_lora/iter_600.pth"],
    new_parts=["heads.phrase."],
)
