"""Finds what is wrong with a config before anything is built: unknown types, arguments and overrides."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmengine import registry as mmengine_registries
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, EMAHook, PrepareTTAHook, SyncBuffersHook
from mmengine.optim import AmpOptimWrapper, ReduceOnPlateauParamScheduler, _ParamScheduler
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.utils import get_object_from_string
from torch.utils.data import DataLoader

from flmm_detseg import registry as registries
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.names import suggest

_RUNNER_KEYS = (
    *inspect.signature(Runner.__init__).parameters,
    "runner_type",
    "strategy",
    "model_wrapper_cfg",
)
# Read by MMEngine before it builds the part.
_CONSUMED = ("convert_to_iter_based",)
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_LOADER_KEYS = (*inspect.signature(DataLoader.__init__).parameters, "worker_init_fn", "num_batch_per_epoch")

_LOOP = "a run's start, data position and guard against NaN are those of flmm_detseg.engine.ResumableTrainLoop; use it"
# Parts of the frameworks that take our models without a word and cannot work with them.
_UNUSABLE: dict[type, str] = {
    EMAHook: "it swaps whole state dicts, while checkpoints here hold trainable tensors only; leave it out",
    SyncBuffersHook: "buffers are equal in all processes, those of the frozen LMM must keep every bit; leave it out",
    PrepareTTAHook: "it is for MMEngine's test loop, which no tool here runs (they are tools/eval_*.py); leave it out",
    CheckpointHook: "it would store the frozen LMM and what cannot be loaded safely; use "
    "flmm_detseg.engine.GroundingCheckpointHook",
    IterBasedTrainLoop: _LOOP,
    EpochBasedTrainLoop: _LOOP,
}
# Ours are made from these.
_BASES = (CheckpointHook, IterBasedTrainLoop, EpochBasedTrainLoop)
# The same, by its name: evaluation reads configs too, and does without XTuner.
_XTUNER_LOOP = "xtuner.engine.runner.loops.TrainLoop"


def check_config(config: Config, source: str, skip: Sequence[str] = ()) -> None:
    """Checks every ``dict(type=..., ...)`` of a config against the signature of its type.

    Args:
        config: Loaded config.
        source: Named in errors.
        skip: Top-level keys that are not checked.

    Raises:
        ConfigError: A type cannot be resolved, has no such argument, or is known not to work here; names the key.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in skip}
    for where, node in walk(content):
        if where in _LOADERS:
            for key in node:
                if key not in _LOADER_KEYS:
                    raise ConfigError(
                        f"{source}: `{where}` has no argument `{key}`{suggest(key, _LOADER_KEYS)}"
                    )
        if "type" in node:
            kind = resolve(node["type"], f"{source}: `{where}.type`")
            try:
                kind = registries.way_to_build(kind, [key for key in node if key != "type"])
            except ConfigError as error:
                raise ConfigError(f"{source}: `{where}`: {error}") from None
            _check_usable(kind, node, f"{source}: `{where}`")
            known = argument_names(kind)
            for key in node:
                if key not in ("type", *_CONSUMED) and known is not None and key not in known:
                    raise ConfigError(f"{source}: `{where}` has no argument `{key}`{suggest(key, known)}")
        elif where == "train_cfg" and node:
            raise ConfigError(f"{source}: `train_cfg` has no `type`; {_LOOP}")


def _check_usable(kind: Any, node: Mapping[str, Any], where: str) -> None:
    for one, reason in _UNUSABLE.items():
        if kind is one or (one not in _BASES and inspect.isclass(kind) and issubclass(kind, one)):
            raise ConfigError(f"{where} is MMEngine's {one.__name__}, which cannot be used here: {reason}")
    if inspect.isclass(kind) and f"{kind.__module__}.{kind.__qualname__}" == _XTUNER_LOOP:
        raise ConfigError(f"{where} is XTuner's {kind.__name__}, which cannot be used here: {_LOOP}")
    if inspect.isclass(kind) and issubclass(kind, _ParamScheduler):
        # An epoch's end is no event of an endless loop over iterations.
        by_epoch = node.get("by_epoch", True) and not node.get("convert_to_iter_based", False)
        if by_epoch and not issubclass(kind, ReduceOnPlateauParamScheduler):
            raise ConfigError(
                f"{where} counts epochs, which a run here never ends: it would keep its first rate. Give "
                "by_epoch=False with iterations, or convert_to_iter_based=True"
            )


def check_machine(config: Config, source: str) -> None:
    """Checks that this machine can run the config's optimizer wrapper, before weights are read.

    Args:
        config: Of the run.
        source: Where it comes from, for the error.

    Raises:
        ConfigError: Mixed precision without a GPU.
    """
    wrapper = config.get("optim_wrapper") or {}
    kind = resolve(wrapper.get("type", "OptimWrapper"), f"{source}: `optim_wrapper.type`")
    if inspect.isclass(kind) and issubclass(kind, AmpOptimWrapper) and get_device() in ("cpu", "mps"):
        raise ConfigError(
            f"{source}: `optim_wrapper` is an AmpOptimWrapper, which needs a GPU, and this machine has none; train on "
            "one that has, or in float32: dict(type=OptimWrapper, ...) without `loss_scale` and `dtype`"
        )


def walk(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict of a nested structure with its dotted key."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in node.items():
            yield from walk(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from walk(value, f"{where}[{position}]")


def resolve(kind: Any, where: str) -> Any:
    """The class or function of a ``type``.

    Args:
        kind: It, its dotted name, or a registered name.
        where: Named in errors.

    Returns:
        The class or function; nothing is called.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(kind, str):
        return kind
    found, reason = _dotted(kind) if "." in kind else _registered(kind)
    if found is None and reason is not None:
        raise ConfigError(
            f"{where} is {kind!r}, which cannot be imported here ({reason}); `flmm-detseg doctor` says what is missing"
        ) from reason
    if found is None:
        raise ConfigError(f"{where} is {kind!r}, which cannot be found; check the name and its import")
    return found


def _dotted(name: str) -> tuple[Any, ImportError | None]:
    """What a dotted name means, and why nothing where its module cannot be imported."""
    found = get_object_from_string(name)
    return found, None if found is not None else _import_error(name)


def _registered(name: str) -> tuple[Any, ImportError | None]:
    """What a name means in the registries, and why maybe nothing: what one of them lists cannot be imported."""
    reason = None
    for place in [*vars(registries).values(), *vars(mmengine_registries).values()]:
        if not isinstance(place, Registry):
            continue
        try:
            found = place.get(name)
        except ImportError as error:
            # Modules before the one that needs XTuner are there.
            found, reason = place.module_dict.get(name), error
        if found is not None:
            return found, None
    return None, reason


def training_error() -> ImportError | None:
    """Why the training loop cannot be imported (it is XTuner's); None where it can."""
    return _import_error("flmm_detseg.engine.training.loop.ResumableTrainLoop")


def _import_error(name: str) -> ImportError | None:
    """What an existing module of a dotted name raises when it is imported; None: there is no such module or name."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        try:
            # Packages of ours import the modules of their names when they are asked for them.
            getattr(importlib.import_module(".".join(parts[:count])), parts[count], None)
        except ModuleNotFoundError as error:
            return None if name.startswith(f"{error.name}.") else error
        except ImportError as error:
            return error
    return None


def argument_names(factory: Any) -> list[str] | None:
    """Names a class or function takes as keywords; None where it takes any."""
    makers: list[Any] = [factory]
    if inspect.isclass(factory):
        makers = [base.__init__ for base in factory.__mro__]  # type: ignore[misc]  # each class's own, on purpose
    names: list[str] = []
    for maker in makers:
        parameters = inspect.signature(maker).parameters
        names += [
            name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return [name for name in dict.fromkeys(names) if name != "self"]
    return None


def parse_overrides(options: Sequence[str], config: Config, also: Collection[str] = ()) -> dict[str, Any]:
    """Reads ``key=value`` overrides and checks that each changes something.

    Args:
        options: As on the command line.
        config: Config they are meant for.
        also: Fields that the command reads besides those of a run.

    Returns:
        By dotted key.

    Raises:
        ConfigError: No ``=``, or a key whose parents the config does not have.
    """
    for option in options:
        if "=" not in option:
            raise ConfigError(f"--cfg-options {option!r}: not of the form KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    overrides = parser.parse_args(["--cfg-options", *options]).cfg_options if options else {}
    content = config.to_dict()
    for dotted in overrides:
        *parents, last = dotted.split(".")
        node: Any = content
        for key in parents:
            node = node[int(key)] if isinstance(node, list) and key.isdigit() else _child(node, key, dotted)
        first = (parents or [last])[0]
        if first not in _RUNNER_KEYS and first not in also:
            raise ConfigError(
                f"--cfg-options {dotted}: a run does not read `{first}`, only where the config puts it (for example "
                f"custom_hooks.0 for a hook){suggest(first, [key for key in content if key in _RUNNER_KEYS])}"
            )
    return overrides


def _child(node: Any, key: str, dotted: str) -> Any:
    if not isinstance(node, Mapping) or key not in node:
        known = list(node) if isinstance(node, Mapping) else []
        raise ConfigError(f"--cfg-options {dotted}: the config has no `{key}`{suggest(key, known)}")
    return node[key]
