"""The three stages on TinyWorld: python tools/train_stages.py configs/tiny/detseg_stages.py"""

stages = [
    dict(
        name="heads",
        runs=[
            dict(name="phrase", config="configs/tiny/frozen_tiny_llava_refcoco_png.py"),
            dict(name="detection", config="configs/tiny/detseg_detection.py"),
            dict(name="segmentation", config="configs/tiny/detseg_segmentation.py"),
        ],
    ),
    dict(
        name="joint",
        runs=[
            dict(
                name="joint",
                config="configs/tiny/detseg_joint.py",
                init_from=["phrase", "detection", "segmentation"],
                new_parts=["lmm."],
            ),
        ],
    ),
    dict(
        name="stability",
        runs=[dict(name="stability", config="configs/tiny/detseg_stability.py", init_from=["joint"])],
    ),
]
evaluations = [
    dict(
        name="refcoco",
        tool="eval_refcoco.py",
        runs=["phrase", "joint", "stability"],
        arguments=["--splits", "val"],
    ),
    dict(name="coco", tool="eval_coco.py", runs=["detection", "joint", "stability"]),
    dict(name="semseg", tool="eval_semseg.py", runs=["segmentation", "joint", "stability"]),
    dict(name="forgetting", tool="eval_forgetting.py", runs=["joint", "stability"]),
    # Retention "switched": the same checkpoint, and no answer changes.
    dict(
        name="forgetting_switched",
        tool="eval_forgetting.py",
        run="stability",
        config="configs/tiny/detseg_switched.py",
        arguments=["--limit", "200"],
    ),
]
