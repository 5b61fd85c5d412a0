"""The three stages on LLaVA-1.5-7B, on one GPU: python tools/train_stages.py configs/llava/detseg_stages_7b.py --slots 1

Several GPUs: train the same configs in this order with `xtuner train CONFIG --deepspeed deepspeed_zero2`, each with the
checkpoints before it (--cfg-options 'model.init_from=[...]' 'model.new_parts=["lmm."]').
"""

stages = [
    dict(
        name="heads",
        runs=[
            dict(name="phrase", config="configs/llava/detseg_phrase_7b.py"),
            dict(name="detection", config="configs/llava/detseg_detection_7b.py"),
            dict(name="segmentation", config="configs/llava/detseg_segmentation_7b.py"),
        ],
    ),
    dict(
        name="joint",
        runs=[
            dict(
                name="joint",
                config="configs/llava/detseg_lora.py",
                init_from=["phrase", "detection", "segmentation"],
                new_parts=["lmm."],
            ),
        ],
    ),
    dict(
        name="stability",
        runs=[dict(name="stability", config="configs/llava/detseg_stability_7b.py", init_from=["joint"])],
    ),
]
evaluations = [
    dict(name="refcoco", tool="eval_refcoco.py", runs=["phrase", "joint", "stability"]),
    dict(name="png", tool="eval_png.py", runs=["phrase", "joint", "stability"]),
    dict(name="coco", tool="eval_coco.py", runs=["detection", "joint", "stability"]),
    dict(name="coco_text", tool="eval_coco.py", run="stability", arguments=["--boxes", "text"]),
    dict(name="semseg", tool="eval_semseg.py", runs=["segmentation", "joint", "stability"]),
    dict(name="forgetting", tool="eval_forgetting.py", runs=["joint", "stability"]),
]
