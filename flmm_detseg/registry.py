"""Child registries of MMEngine's; the module must keep this name because MMEngine imports ``{scope}.registry``.

Lazy configs name classes, so registration is not needed to build a config; it is there for string types and listing.
"""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

# Name it when building from a string type: a runner in the same process sets MMEngine's default scope to its own.
SCOPE = "flmm_detseg"

# LMM adapters, heads, refiners and the assembled models.
MODELS = Registry(
    "model",
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        "flmm_detseg.lmms",
        "flmm_detseg.lmms.all_families",
        "flmm_detseg.heads",
        "flmm_detseg.cache",
        "flmm_detseg.refiners",
        "flmm_detseg.models",
    ],
)
# Readers of annotation formats, mixes and samplers' datasets.
DATASETS = Registry("dataset", parent=MMENGINE_DATASETS, scope=SCOPE, locations=["flmm_detseg.datasets"])
# Metrics of referring segmentation, PNG, ...
METRICS = Registry("metric", parent=MMENGINE_METRICS, scope=SCOPE, locations=["flmm_detseg.evaluation"])
# Training hooks, optimizers, loops, runners and strategies.
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope=SCOPE, locations=["flmm_detseg.engine"])
OPTIMIZERS = Registry("optimizer", parent=MMENGINE_OPTIMIZERS, scope=SCOPE, locations=["flmm_detseg.engine"])
LOOPS = Registry("loop", parent=MMENGINE_LOOPS, scope=SCOPE, locations=["flmm_detseg.engine"])
RUNNERS = Registry("runner", parent=MMENGINE_RUNNERS, scope=SCOPE, locations=["flmm_detseg.engine"])
STRATEGIES = Registry("strategy", parent=MMENGINE_STRATEGIES, scope=SCOPE, locations=["flmm_detseg.engine"])
