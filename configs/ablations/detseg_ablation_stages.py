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
    "words.F1@0.5",
]
_stage1 = dict(
    phrase="work_dirs/detseg_stages/phrase/iter_1600.pth",
    detection="work_dirs/detseg_stages/detection/iter_400.pth",
    segmentation="work_dirs/detseg_stages/segmentation/iter_400.pth",
)
_settings = ["train_cfg.max_iters=200", "param_scheduler.1.end=200", "custom_hooks.1.interval=1000"]
_gates = ["heads.detection.neck.gate", "heads.segmentation.neck.gate"]
# Every question, and what stage 1 does not contain: LoRA, and what the question adds.
_questions = {
    "detseg_rank2": ["lmm."],
    "detseg_rank32": ["lmm."],
    "detseg_conv_lora": ["lmm."],
    "detseg_head_lora": ["lmm.", "heads.segmentation.*.lora_"],
    "detseg_full": ["lmm."],
    "detseg_gate_static": ["lmm.", *_gates],
    "detseg_gate_dynamic": ["lmm.", *_gates],
    "detseg_gate_channel": ["lmm.", *_gates],
    "detseg_gate_spatial": ["lmm.", *_gates],
    "detseg_uncertainty": ["lmm.", "balancer."],
    "detseg_mixed": ["lmm."],
    "detseg_gradnorm": ["lmm.", "balancer."],
    "detseg_pcgrad": ["lmm."],
    "detseg_distillation": ["lmm."],
    "detseg_isolated": ["lmm."],
    "detseg_text": ["lmm."],
}


def _run(name, config, new_parts, sources):
    files = [_stage1[source] for source in sources]
    return dict(name=name, config=config, new_parts=new_parts, init_from=files, cfg_options=_settings)


_single = ["detection", "segmentation", "phrase"]
stages = [
    dict(
        name="stage 2",
        runs=[
            _run("joint", "configs/tiny/detseg_joint.py", ["lmm."], _stage1),
            *(_run(name, f"configs/ablations/{name}.py", new, _stage1) for name, new in _questions.items()),
            # A classifier that stage 1 did not train: the whole detection head starts from random weights.
            _run(
                "detseg_open",
                "configs/ablations/detseg_open.py",
                ["lmm.", "heads.detection."],
                ["phrase", "segmentation"],
            ),
            *(
                _run(f"detseg_only_{task}", f"configs/ablations/detseg_only_{task}.py", ["lmm."], [task])
                for task in _single
            ),
        ],
    )
]
_joint = ["joint", *_questions, "detseg_open"]
evaluations = [
    dict(
        name="coco",
        tool="eval_coco.py",
        runs=[*_joint, "detseg_only_detection"],
        arguments=["--limit", "225"],
    ),
    dict(
        name="semseg",
        tool="eval_semseg.py",
        runs=[*_joint, "detseg_only_segmentation"],
        arguments=["--limit", "225"],
    ),
    dict(
        name="refcoco",
        tool="eval_refcoco.py",
        runs=[*_joint, "detseg_only_phrase"],
        arguments=["--splits", "val", "--limit", "300"],
    ),
    dict(name="vqa", tool="eval_vqa.py", runs=_joint, arguments=["--limit", "600"]),
    dict(
        name="words",
        tool="eval_coco.py",
        runs=["joint", "detseg_text"],
        arguments=["--boxes", "text", "--limit", "100"],
    ),
]
