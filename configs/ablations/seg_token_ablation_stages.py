"""What matters for answers with masks? python tools/ablation_table.py configs/ablations/seg_token_ablation_stages.py

LISA's questions (arXiv 2308.00692, section 4.3) on TinyWorld: the mask's backbone (SAM or the LMM's own tower), its decoder
tuned or kept, label maps added, one wording or several, queries not seen at all or few of them; short and long queries
stand apart in every row. 300 iterations each, so that rows differ in their question only. Data:
flmm-detseg data tinyworld --out data/tinyworld --reason 2500 150 500
flmm-detseg data tinyworld --out data/tinyworld_few --images 60 --reason 80 2 2
"""

title = "Answers with masks on TinyWorld: what matters"
columns = [
    "reason.gIoU",
    "reason.cIoU",
    "reason.N_acc",
    "reason.T_acc",
    "reason.words=up_to_10/gIoU",
    "reason.words=more/gIoU",
]
_settings = ["train_cfg.max_iters=300", "param_scheduler.1.end=300", "custom_hooks.1.interval=1000"]
_questions = [
    "seg_token_kept_decoder",
    "seg_token_at",
    "seg_token_tables",
    "seg_token_classes",
    "seg_token_one_wording",
    "seg_token_zero_shot",
    "seg_token_pointer_gate",
]
_runs = [
    dict(name="seg_token", config="configs/tiny/seg_token.py", cfg_options=_settings),
    dict(name="seg_token_pointer", config="configs/tiny/seg_token_pointer.py", cfg_options=_settings),
    *(dict(name=name, config=f"configs/ablations/{name}.py", cfg_options=_settings) for name in _questions),
]
stages = [
    dict(name="each alone", runs=_runs),
    dict(
        name="few queries",
        runs=[
            dict(
                name="seg_token_few",
                config="configs/ablations/seg_token_few.py",
                init_from=["seg_token_zero_shot"],
                cfg_options=_settings,
            )
        ],
    ),
]
evaluations = [
    dict(
        name="reason",
        tool="eval_reason.py",
        runs=[*(run["name"] for run in _runs), "seg_token_few"],
        arguments=["--splits", "reason_test", "--limit", "300"],
    )
]
