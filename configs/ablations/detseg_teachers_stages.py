"""Teachers in stage 3? python tools/ablation_table.py configs/ablations/detseg_teachers_stages.py

After the chain itself (python tools/train_stages.py configs/tiny/detseg_stages.py): every run goes on from its stage 2, the
heads of its stage 1 teach.
"""

title = "LLaVA-Det-Seg on TinyWorld: teachers in stage 3"
columns = ["coco.AP50", "coco.AP", "semseg.mIoU", "refcoco.refined_cIoU", "vqa.accuracy"]
_runs = {
    "stability": "configs/tiny/detseg_stability.py",
    "soft": "configs/ablations/detseg_teachers_soft.py",
    "labels": "configs/ablations/detseg_teachers_labels.py",
}
_joint = "work_dirs/detseg_stages/joint/iter_400.pth"
stages = [
    dict(
        name="stage 3",
        runs=[dict(name=name, config=config, init_from=[_joint]) for name, config in _runs.items()],
    )
]
evaluations = [
    dict(name="coco", tool="eval_coco.py", runs=[*_runs], arguments=["--limit", "225"]),
    dict(name="semseg", tool="eval_semseg.py", runs=[*_runs], arguments=["--limit", "225"]),
    dict(
        name="refcoco", tool="eval_refcoco.py", runs=[*_runs], arguments=["--splits", "val", "--limit", "300"]
    ),
    dict(name="vqa", tool="eval_vqa.py", runs=[*_runs], arguments=["--limit", "600"]),
]
