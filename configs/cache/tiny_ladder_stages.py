"""The ladder of the background cache: python tools/ablation_table.py configs/cache/tiny_ladder_stages.py

One change per rung, the same validation questions for each. Rungs 0 to 2 train nothing: they are evaluations of a config.
"""

title = "The ladder of the background cache"
columns = ["vqa.accuracy", "vqa.exact_accuracy", "vqa.yes_no_accuracy"]

stages = [
    dict(
        name="separators and projector",
        runs=[
            dict(name="rung3", config="configs/cache/tiny_separators_projector.py"),
            dict(name="stock_lora", config="configs/cache/tiny_stock_lora.py"),
        ],
    ),
    dict(
        name="pre-fusion",
        runs=[
            dict(
                name="rung4_fused",
                config="configs/cache/tiny_prefusion.py",
                init_from=["rung3"],
                new_parts=["lmm.prefusion."],
            ),
            dict(
                name="rung4_compressed",
                config="configs/cache/tiny_prefusion_compressed.py",
                init_from=["rung3"],
                new_parts=["lmm.prefusion."],
            ),
        ],
    ),
    dict(
        name="language model",
        runs=[
            dict(
                name=f"rung5_{name}",
                config=f"configs/cache/{config}.py",
                init_from=[start],
                new_parts=[f"lmm.model.model.{part}." for part in parts],
            )
            for name, config, start, parts in (
                ("lora", "tiny_cached_lora", "rung3", ("vision_tower", "language_model")),
                ("last_layers", "tiny_cached_last_layers", "rung3", ("language_model",)),
                ("fused_lora", "tiny_prefusion_lora", "rung4_fused", ("vision_tower", "language_model")),
                (
                    "compressed_lora",
                    "tiny_prefusion_compressed_lora",
                    "rung4_compressed",
                    ("vision_tower", "language_model"),
                ),
            )
        ],
    ),
]
evaluations = [
    dict(name="vqa.rung0", tool="eval_vqa.py", config="configs/cache/tiny_ladder_stock.py"),
    dict(name="vqa.rung1", tool="eval_vqa.py", config="configs/cache/tiny_ladder_split.py"),
    dict(name="vqa.rung2", tool="eval_vqa.py", config="configs/cache/tiny_ladder_order.py"),
    dict(
        name="vqa",
        tool="eval_vqa.py",
        runs=[
            "rung3",
            "stock_lora",
            "rung4_fused",
            "rung4_compressed",
            "rung5_lora",
            "rung5_last_layers",
            "rung5_fused_lora",
            "rung5_compressed_lora",
        ],
    ),
]
