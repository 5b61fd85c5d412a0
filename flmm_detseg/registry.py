"""Child registries of MMEngine's; the module must keep this name because MMEngine imports ``{scope}.registry``.

Lazy configs name classes, so registration is not needed to build a config; it is there for string types and listing.
A class that is built in several ways (``LlavaAdapter`` from ``pretrained`` or from ``config``) names them in
``BUILDERS``; the arguments say which one is meant.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from mmengine import registry as engine
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry, build_model_from_cfg

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.names import suggest

# Name it when building from a string type: a runner in the same process sets MMEngine's default scope to its own.
SCOPE = "flmm_detseg"


def _modules(room: str, *names: str) -> list[str]:
    """The modules of a room that register something: its package alone imports none of them."""
    return [f"{SCOPE}.{room}.{name}" for name in names]


def way_to_build(kind: Any, arguments: Collection[str]) -> Any:
    """How to build a ``type`` with the arguments beside it.

    Args:
        kind: Class, function or method.
        arguments: Names of the arguments.

    Returns:
        Of a class with ``BUILDERS`` (names of class methods): the class itself where its own required arguments are
        there, else the first of these methods whose required arguments are. Anything else as it is.

    Raises:
        ConfigError: No way takes these arguments; names what is needed.
    """
    names = getattr(kind, "BUILDERS", ()) if inspect.isclass(kind) else ()
    if not names:
        return kind
    needed = {}
    for way in (kind, *(getattr(kind, name) for name in names)):
        needed[way] = [
            name
            for name, parameter in inspect.signature(way).parameters.items()
            if parameter.default is parameter.empty
        ]
        if all(name in arguments for name in needed[way]):
            return way
    several = " or ".join(f"`{', '.join(missing)}`" for missing in list(needed.values())[1:])
    raise ConfigError(f"{kind.__name__} needs {several}, given are: {', '.join(arguments) or 'none'}")


def find_type(kind: Any, registry: Registry, where: str) -> Any:
    """What a config's ``type`` means.

    Args:
        kind: A registered name; anything else is returned as it is.
        registry: Where names are looked up.
        where: Config key of the part, for errors.

    Returns:
        Class, function or method.

    Raises:
        ConfigError: The name is not registered.
    """
    if not isinstance(kind, str):
        return kind
    found = registry.get(kind)
    if found is None:
        raise ConfigError(
            f"`{where}.type` is {kind!r}, which is not registered{suggest(kind, list(registry.module_dict))} "
            "(flmm_detseg.registry.MODELS lists them)"
        )
    return found


def check_arguments(
    factory: Any, arguments: Collection[str], where: str, filled_in: Collection[str] = ()
) -> None:
    """Checks that a ``type`` can be called with the arguments beside it.

    Args:
        factory: From :func:`find_type`.
        arguments: Names of the arguments.
        where: Config key of the part, for errors.
        filled_in: Arguments that a config may leave out, because somebody else fills them in.

    Raises:
        ConfigError: It has no such argument, or lacks one.
    """
    known = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    for name in arguments:
        if name not in known:
            raise ConfigError(f"`{where}` has no argument `{name}`{suggest(name, list(known))}")
    missing = [
        name
        for name, p in known.items()
        if p.default is inspect.Parameter.empty and name not in arguments and name not in filled_in
    ]
    if missing:
        raise ConfigError(f"`{where}` lacks {', '.join(f'`{name}`' for name in missing)}")


def _build(cfg: Any, registry: Registry, default_args: Any = None) -> Any:
    """MMEngine's own way to build a model, after :func:`way_to_build`."""
    if isinstance(cfg, dict) and "type" in cfg:
        kind = cfg["type"]
        kind = registry.get(kind) if isinstance(kind, str) else kind
        way = way_to_build(kind, [key for key in (*cfg, *(default_args or ())) if key != "type"])
        if way is not kind:
            cfg = cfg.copy()
            cfg["type"] = way
    return build_model_from_cfg(cfg, registry, default_args)


# The loop comes last: the names of the others are known where XTuner, which it is made from, cannot be imported.
_ENGINE = _modules(
    "engine.training",
    "checkpoint_hook",
    "deepspeed_cpu",
    "hooks",
    "optimizer",
    "presence_hook",
    "report_hook",
    "run_tracker",
    "runner",
    "loop",
)

# LMM adapters, heads, refiners, the cache's parts and the assembled models.
MODELS = Registry(
    "model",
    build_func=_build,
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        *_modules("lmms", "all_families"),
        *_modules("lmms.added", "own_projector", "region_tokens", "routed_projector", "spatial_sampler"),
        *_modules("heads", "detection_head", "language_head", "neck", "phrase_head", "semantic_head"),
        *_modules("heads", "attention_mask_head", "answer_presence_head", "pointer_head", "presence_head"),
        *_modules("heads", "seg_token_head", "side_stream", "unet_head"),
        *_modules("refiners", "sam", "sam2"),
        *_modules("cache", "cached_lmm", "reading.prefusion"),
        *_modules(
            "cache.regions", "hf_detector", "mmdet_detector", "sources", "text_regions", "united_regions"
        ),
        *_modules("store", "settings"),
        *_modules("models", "balancer", "grounding_lmm"),
        *_modules("inference", "streaming"),
    ],
)
# Readers of annotation formats, mixes and samplers' datasets.
DATASETS = Registry(
    "dataset",
    parent=MMENGINE_DATASETS,
    scope=SCOPE,
    locations=[
        *_modules(
            "datasets", "absent_phrases", "coco_instances", "joint", "jsonl", "llava_instruct", "mix", "png"
        ),
        *_modules("datasets", "phrase_list", "questions", "refcoco", "semantic_maps", "task_sampler"),
        *_modules("datasets", "class_prompts", "grandf", "grefcoco", "reason_seg", "seg_answers"),
    ],
)
# Samplers and collation register with MMEngine itself, whose runner looks there; these two import them.
DATA_SAMPLERS = Registry(
    "data sampler",
    parent=MMENGINE_DATA_SAMPLERS,
    scope=SCOPE,
    locations=_modules("datasets", "collate", "task_sampler"),
)
FUNCTIONS = Registry(
    "function", parent=MMENGINE_FUNCTIONS, scope=SCOPE, locations=_modules("datasets", "collate")
)
# Metrics of referring segmentation, PNG, ...
METRICS = Registry(
    "metric",
    parent=MMENGINE_METRICS,
    scope=SCOPE,
    locations=_modules(
        "evaluation", "coco_metric", "png_metric", "reason_metric", "ref_seg_metric", "semseg_metric"
    ),
)
# Training hooks, optimizers, loops, runners and strategies.
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope=SCOPE, locations=_ENGINE)
OPTIMIZERS = Registry("optimizer", parent=MMENGINE_OPTIMIZERS, scope=SCOPE, locations=_ENGINE)
LOOPS = Registry("loop", parent=MMENGINE_LOOPS, scope=SCOPE, locations=_ENGINE)
RUNNERS = Registry("runner", parent=MMENGINE_RUNNERS, scope=SCOPE, locations=_ENGINE)
STRATEGIES = Registry("strategy", parent=MMENGINE_STRATEGIES, scope=SCOPE, locations=_ENGINE)
# Where curves and pictures of a run go.
VISBACKENDS = Registry("vis_backend", parent=MMENGINE_VISBACKENDS, scope=SCOPE, locations=_ENGINE)

# MMEngine asks a config's scope for these as well, and warns where there is nothing to ask.
_NOTHING_OF_OURS = tuple(
    Registry(root.name, parent=root, scope=SCOPE, locations=[])
    for root in (
        engine.EVALUATOR,
        engine.INFERENCERS,
        engine.LOG_PROCESSORS,
        engine.MODEL_WRAPPERS,
        engine.OPTIM_WRAPPERS,
        engine.OPTIM_WRAPPER_CONSTRUCTORS,
        engine.PARAM_SCHEDULERS,
        engine.RUNNER_CONSTRUCTORS,
        engine.TASK_UTILS,
        engine.TRANSFORMS,
        engine.VISUALIZERS,
        engine.WEIGHT_INITIALIZERS,
    )
)
