"""The ladder of the background cache: python tools/ablation_table.py configs/cache/tiny_ladder_stages.py

One change per step, the same validation questions for each: TinyWorld's ordinary ones, with random groups, and those
about frames of streams (python tools/make_streams.py --out data/tinyworld_streams), by what they need: objects,
background, both (cross), the clock, the score. The long runs train on more scenes (python tools/make_tinyworld.py --out
data/tinyworld_large --images 12000 --seed 1). Steps 0 to 2 train nothing: they are evaluations of a config. `detected`
asks the ordinary questions with groups of our own detection head instead. Run rungN_... is step N.
"""

title = "The ladder of the background cache"
columns = [
    "vqa.vqa_val.accuracy",
    "vqa.vqa_val.yes_no_accuracy",
    "vqa.streams.accuracy",
    *(f"vqa.streams.accuracy/{kind}" for kind in ("objects", "background", "cross", "clock", "score")),
    "detected.vqa_val.accuracy",
]


def _run(name, config, start=None, parts=()):
    new_parts = [part if part.startswith("lmm.") else f"lmm.model.model.{part}." for part in parts]
    settings = dict(init_from=[start], new_parts=new_parts) if start else {}
    return dict(name=name, config=f"configs/cache/{config}.py", **settings)


_lora = ("vision_tower", "language_model")
stages = [
    dict(
        name="separators and projector",
        runs=[
            _run("rung3", "tiny_separators_projector"),
            _run("rung3_packed", "tiny_separators_projector_packed"),
            _run("stock_lora", "tiny_stock_lora"),
            dict(name="detector", config="configs/tiny/detseg_detection.py"),
        ],
    ),
    dict(
        name="pre-fusion",
        runs=[
            _run("rung4_fused", "tiny_prefusion", "rung3", ["lmm.prefusion."]),
            _run("rung4_compressed", "tiny_prefusion_compressed", "rung3", ["lmm.prefusion."]),
        ],
    ),
    dict(
        name="language model",
        runs=[
            _run("rung5_lora", "tiny_cached_lora", "rung3", _lora),
            _run("rung5_lora_long", "tiny_cached_lora_long", "rung3", _lora),
            _run("stock_lora_long", "tiny_stock_lora_long"),
            _run("rung5_lora_packed", "tiny_cached_lora_packed", "rung3_packed", _lora),
            _run("rung5_last_layers", "tiny_cached_last_layers", "rung3", ["language_model"]),
            _run("rung5_full", "tiny_cached_full", "rung3", _lora),
            _run("rung5_fused_lora", "tiny_prefusion_lora", "rung4_fused", _lora),
        ],
    ),
]
_untrained = dict(
    rung0="stock", rung1="split", rung2="order", rung2_packed="order_packed",
)  # fmt: skip
evaluations = [
    *(
        dict(name=f"vqa.{name}", tool="eval_vqa.py", config=f"configs/cache/tiny_ladder_{config}.py")
        for name, config in _untrained.items()
    ),
    dict(
        name="vqa",
        tool="eval_vqa.py",
        runs=[run["name"] for stage in stages for run in stage["runs"] if run["name"] != "detector"],
    ),
    *(
        dict(
            name=f"detected.{name}",
            tool="eval_vqa.py",
            run=name,
            config="configs/cache/tiny_ladder_detected.py",
            checkpoints={"model.lmm.partitioner.source.otherwise.checkpoint": "detector"},
        )
        for name in ("rung5_lora", "rung5_lora_long")
    ),
]
