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
    dict(name="refcoco", tool="eval_refcoco.py", run="stability", arguments=["--splits", "val"]),
    dict(name="forgetting", tool="eval_forgetting.py", run="stability"),
    dict(name="coco", tool="eval_coco.py", run="stability"),
    dict(name="semseg", tool="eval_semseg.py", run="stability"),
]
