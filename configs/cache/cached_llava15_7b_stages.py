"""Both stages on LLaVA-1.5-7B, on one GPU: python tools/train_stages.py configs/cache/cached_llava15_7b_stages.py --slots 1

Several GPUs: train the same configs in this order with `xtuner train CONFIG --deepspeed deepspeed_zero2`, the second with
the checkpoint of the first (--cfg-options 'model.init_from=[...]' 'model.new_parts=[...]', as below).
"""

stages = [
    dict(name="separators and projector", runs=[dict(name="cached", config="configs/cache/cached_llava15_7b.py")]),
    dict(
        name="language model",
        runs=[
            dict(
                name="cached_lora",
                config="configs/cache/cached_llava15_7b_lora.py",
                init_from=["cached"],
                new_parts=["lmm.model.model.vision_tower.", "lmm.model.model.language_model."],
            ),
        ],
    ),
]  # fmt: skip
evaluations = [dict(name="vqa", tool="eval_vqa.py", runs=["cached", "cached_lora"])]
