"""Training and evaluation runs: hooks, the in-process trainer, DeepSpeed on gloo, the sharded evaluation driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.engine.training.checkpoint_hook import GroundingCheckpointHook
    from flmm_detseg.engine.training.deepspeed_cpu import GlooDeepSpeedStrategy
    from flmm_detseg.engine.training.hooks import (
        DeepSpeedHook,
        FrozenGuardHook,
        GlobalLossHook,
        IterationSeedHook,
        SampleInfoHook,
        VisualizationHook,
    )
    from flmm_detseg.engine.training.loop import ResumableTrainLoop
    from flmm_detseg.engine.training.optimizer import GroupedAdamW
    from flmm_detseg.engine.training.presence_hook import PresenceCalibrationHook
    from flmm_detseg.engine.training.report_hook import ParameterReportHook
    from flmm_detseg.engine.training.run_tracker import RunTracker
    from flmm_detseg.engine.training.runner import GroundingRunner

__all__ = [
    "DeepSpeedHook",
    "FrozenGuardHook",
    "GlobalLossHook",
    "GlooDeepSpeedStrategy",
    "GroundingCheckpointHook",
    "GroundingRunner",
    "GroupedAdamW",
    "IterationSeedHook",
    "ParameterReportHook",
    "PresenceCalibrationHook",
    "ResumableTrainLoop",
    "RunTracker",
    "SampleInfoHook",
    "VisualizationHook",
]

__getattr__, __dir__ = lazy_names(__name__)
