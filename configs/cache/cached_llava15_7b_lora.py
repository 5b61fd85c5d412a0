"""Background cache on LLaVA-1.5-7B, stage 2: LoRA in vision tower and language model, after stage 1.

It starts from stage 1 (cached_llava15_7b_stages names the configs), given by
--cfg-options 'model.init_from=[STAGE_1]' 'model.new_parts=[...]'; alone it starts from untrained separators.
"""

from mmengine.config import read_base

with read_base():
    from .cached_llava15_7b import *

model.update(
    lmm=dict(
        lmm=dict(
            lora=dict(
                vision=dict(r=8, alpha=32, target="qkv"),
                llm=dict(r=16, alpha=64, target="attention"),
            ),
            gradient_checkpointing=True,
        )
    )
)
optim_wrapper.update(
    optimizer=dict(
        groups={
            "vision_tower": dict(lr_mult=0.5, decay_mult=0.0),
            ".lora_": dict(lr_mult=2.0, decay_mult=0.0),
        },
    )
)
param_scheduler[1].update(end=30000)
train_cfg.update(max_iters=30000)
