"""What matters in stage 2? python tools/ablation_table.py configs/ablations/detseg_ablation_stages.py

Every run starts from the heads of stage 1 (made by: python tools/train_stages.py configs/tiny/detseg_stages.py) and takes
200 iterations, so that the rows differ in their question only.
"""

title = "LLaVA-Det-Seg on TinyWorld: what matters in stage 2"
columns = [
    "coco.AP50",
    "coco.AP",
    "semseg.mIoU",
    "refcoco.coarse_cIoU",
    "refcoco.refined_cIoU",
    "vqa.accuracy",
]
_questions = [
    "detseg_rank2",
    "detseg_rank32",
    "detseg_conv_lora",
    "detseg_full",
    "detseg_gate_static",
    "detseg_gate_dynamic",
    "detseg_uncertainty",
    "detseg_mixed",
    "detseg_gradnorm",
    "detseg_pcgrad",
    "detseg_distillation",
    "detseg_isolated",
]
_start = dict(
    init_from=[
        "work_dirs/detseg_stages/phrase/iter_1600.pth",
        "work_dirs/detseg_stages/detection/iter_400.pth",
        "work_dirs/detseg_stages/segmentation/iter_400.pth",
    ],
    cfg_options=["train_cfg.max_iters=200", "param_scheduler.1.end=200", "custom_hooks.1.interval=1000"],
)
_gates = ["heads.detection.neck.gate", "heads.segmentation.neck.gate"]
# What stage 1 does not hold: LoRA, and what the question adds.
_new = {
    "detseg_gate_static": ["lmm.", *_gates],
    "detseg_gate_dynamic": ["lmm.", *_gates],
    "detseg_uncertainty": ["lmm.", "balancer."],
    "detseg_gradnorm": ["lmm.", "balancer."],
}
stages = [
    dict(
        name="stage 2",
        runs=[
            dict(name="joint", config="configs/tiny/detseg_joint.py", new_parts=["lmm."], **_start),
            *(
                dict(
                    name=name,
                    config=f"configs/ablations/{name}.py",
                    new_parts=_new.get(name, ["lmm."]),
                    **_start,
                )
                for name in _questions
            ),
        ],
    )
]
_runs = ["joint", *_questions]
evaluations = [
    dict(name="coco", tool="eval_coco.py", runs=_runs, arguments=["--limit", "225"]),
    dict(name="semseg", tool="eval_semseg.py", runs=_runs, arguments=["--limit", "225"]),
    dict(name="refcoco", tool="eval_refcoco.py", runs=_runs, arguments=["--splits", "val", "--limit", "300"]),
    dict(name="vqa", tool="eval_vqa.py", runs=_runs, arguments=["--limit", "600"]),
]
