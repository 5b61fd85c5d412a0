"""Hooks, logs and environment shared by all recipes."""

from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer

from flmm_detseg.engine import (
    DeepSpeedHook,
    FrozenGuardHook,
    GlobalLossHook,
    GroundingCheckpointHook,
    GroundingRunner,
    IterationSeedHook,
    ParameterReportHook,
    SampleInfoHook,
    VisualizationHook,
)
from flmm_detseg.engine.xtuner_process import framework as mmengine_framework

# What `xtuner train` asks for first, so that a failure there is seen (docs/robustness.md).
framework = mmengine_framework
# Where types that are given by name alone are looked for, before MMEngine's own.
default_scope = "flmm_detseg"
# Several processes on any machine; `--deepspeed` replaces it by MMEngine's FlexibleRunner.
runner_type = GroundingRunner
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=GroundingCheckpointHook, by_epoch=False, interval=500, max_keep_ckpts=1),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
sample_info_hook = dict(type=SampleInfoHook)
visualization_hook = dict(type=VisualizationHook, interval=500, num_images=4)
frozen_guard_hook = dict(type=FrozenGuardHook)
iteration_seed_hook = dict(type=IterationSeedHook)
global_loss_hook = dict(type=GlobalLossHook)
deepspeed_hook = dict(type=DeepSpeedHook)
parameter_report_hook = dict(type=ParameterReportHook)
custom_hooks = [
    sample_info_hook,
    visualization_hook,
    frozen_guard_hook,
    iteration_seed_hook,
    global_loss_hook,
    deepspeed_hook,
    parameter_report_hook,
]

log_processor = dict(type=LogProcessor, by_epoch=False)
log_level = "INFO"
visualizer = dict(
    type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)]
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
randomness = dict(seed=42, deterministic=False)
load_from = None
resume = False
