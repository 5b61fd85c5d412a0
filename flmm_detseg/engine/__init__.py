"""Training and evaluation runs: hooks, the in-process trainer, DeepSpeed on gloo, the sharded evaluation driver."""

from flmm_detseg.engine.checkpoint_hook import GroundingCheckpointHook
from flmm_detseg.engine.hooks import FrozenGuardHook, SampleInfoHook, VisualizationHook

__all__ = ["FrozenGuardHook", "GroundingCheckpointHook", "SampleInfoHook", "VisualizationHook"]
