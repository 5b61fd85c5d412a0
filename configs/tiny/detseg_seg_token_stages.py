"""Heads, then all tasks with `[SEG]`, on TinyWorld: python tools/train_stages.py configs/tiny/detseg_seg_token_stages.py"""

# The same recipes as detseg_stages', on the LMM that knows the reasoning set's words.
_lmm = ["model.lmm.pretrained=data/models/tiny_llava_reason"]
stages = [
    dict(
        name="heads",
        runs=[
            dict(name="phrase", config="configs/tiny/frozen_tiny_llava_refcoco_png.py", cfg_options=_lmm),
            dict(name="detection", config="configs/tiny/detseg_detection.py", cfg_options=_lmm),
            dict(name="segmentation", config="configs/tiny/detseg_segmentation.py", cfg_options=_lmm),
        ],
    ),
    dict(
        name="joint",
        runs=[
            dict(
                name="joint",
                config="configs/tiny/detseg_seg_token.py",
                init_from=["phrase", "detection", "segmentation"],
                new_parts=["lmm.", "heads.reasoning."],
            ),
        ],
    ),
]
evaluations = [
    dict(name="reason", tool="eval_reason.py", run="joint", arguments=["--splits", "reason_test"]),
    dict(name="refcoco", tool="eval_refcoco.py", runs=["phrase", "joint"], arguments=["--splits", "val"]),
    dict(name="coco", tool="eval_coco.py", runs=["detection", "joint"]),
    dict(name="semseg", tool="eval_semseg.py", runs=["segmentation", "joint"]),
    dict(name="forgetting", tool="eval_forgetting.py", run="joint", arguments=["--limit", "200"]),
]
