"""Modules that are added to an LMM: named in a config, trained beside it, off in base mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError, FlmmError
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS, check_arguments, find_type
from flmm_detseg.utils.values import shown


class LMMPart(nn.Module, ABC):
    """One added module. Its parameters are trained unless something freezes them, and saved as ``lmm.parts.NAME``.

    Attributes:
        active: False in base mode.
        token: The text whose places in the prompt this part fills; None for a part that fills none.
    """

    active: bool = True
    token: str | None = None

    @abstractmethod
    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """Makes its tensors, and inserts itself into the model.

        Args:
            model: The transformers model; may be on the meta device.
            facts: Of it.

        Raises:
            ConfigError: It does not fit this model.
        """

    @property
    @abstractmethod
    def layout(self) -> dict[str, Any]:
        """What it was made for, as facts for JSON; checkpoints record them."""

    def losses(self) -> dict[str, Tensor]:
        """What it asks of the training, and figures for the log, of the last pass of the LMM with autograd.

        Returns:
            Scalars: weighted losses, with ``loss`` in their names, and figures without a graph, whose mean over samples
            must mean something. Empty in eval mode, and for parts that ask for nothing.
        """
        return {}

    def settle(self, model: PreTrainedModel) -> None:
        """Becomes part of the model permanently, so that other programs can read it.

        Args:
            model: The one it is attached to.

        Raises:
            ConfigError: Other programs have no place for it.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot be exported: the model's own class has no place for it. Leave it out of "
            "`model.lmm.parts`, or keep using it from here"
        )


def build_parts(
    config: Mapping[str, Mapping[str, Any]] | None, model: PreTrainedModel, facts: LMMFacts
) -> dict[str, LMMPart]:
    """Builds the parts of a config and attaches them.

    Args:
        config: By name, each with its ``type``.
        model: The transformers model.
        facts: Of it.

    Returns:
        The parts by name, trainable; empty for no config.

    Raises:
        ConfigError: No such part, or it does not fit; names ``lmm.parts.NAME``.
    """
    parts: dict[str, LMMPart] = {}
    for name, settings in _named(config).items():
        where = f"lmm.parts.{name}"
        try:
            part = settings if isinstance(settings, nn.Module) else _build(settings, where)
            if not isinstance(part, LMMPart):
                raise ConfigError(f"a {type(part).__name__} is no part of an LMM (LMMPart)")
            part.attach(model, facts)
        except FlmmError as error:
            known = f"`{where}" in str(error)
            raise error if known else type(error)(f"`{where}`: {error}") from error
        parts[name] = part.requires_grad_(True)
    if len([part for part in parts.values() if part.token is not None]) > 1:
        raise ConfigError("`lmm.parts` has several parts that fill places of the prompt; one is possible")
    return parts


def _named(config: object) -> Mapping[str, Any]:
    """The parts of a config by name."""
    if config is None:
        return {}
    form = "parts have names of your own: parts=dict(NAME=dict(type=...))"
    if not isinstance(config, Mapping) or "type" in config:
        raise ConfigError(f"`lmm.parts` is {shown(config)}; {form}")
    for name in config:
        # What nn.ModuleDict takes, and parameters can be called.
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ConfigError(f"`lmm.parts` has a part called {name!r}, which cannot be a name; {form}")
    return config


def _build(settings: object, where: str) -> nn.Module:
    if not isinstance(settings, Mapping) or "type" not in settings:
        raise ConfigError(f"`{where}` is {shown(settings)}; dict(type=..., ...) is needed")
    arguments = dict(settings)
    factory = find_type(arguments.pop("type"), MODELS, where)
    check_arguments(factory, arguments, where)
    return factory(**arguments)


@contextmanager
def parts_off(parts: Mapping[str, LMMPart]) -> Iterator[None]:
    """Context in which all parts are off. May be nested; for one thread."""
    before = {name: part.active for name, part in parts.items()}
    try:
        for part in parts.values():
            part.active = False
        yield
    finally:
        for name, active in before.items():
            parts[name].active = active
