"""Parts that several heads share, by name: ``model.parts=dict(sam=dict(type=...))`` and ``sam="sam"`` in the heads.

A shared part is built once and has one name, ``parts.NAME.*``, in checkpoints, optimizers and logs, whichever heads
hold it. Without ``model.parts`` nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import Head
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.models.build import build_part
from flmm_detseg.utils.names import suggest

PREFIX = "parts."


class SharedParts(nn.ModuleDict):
    """Parts by name, each after those it is made of, so that these keep their own names."""


class PartsToShare:
    """``model.parts``, each built when the first head or other part names it, whatever their order in the config.

    Args:
        parts: Configs, or built modules, by name.
        lmm: What the parts' sizes follow from.

    Raises:
        ConfigError: A name cannot be that of a module.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any] | nn.Module], lmm: LMMAdapter) -> None:
        for name in parts:
            if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise ConfigError(
                    f"`model.parts`: {name!r} cannot be the name of a part; take another, e.g. 'sam'"
                )
        self._parts, self._lmm = parts, lmm
        self._built: dict[str, nn.Module] = {}
        self._trainable: dict[str, list[nn.Parameter]] = {}
        self._open: list[str] = []
        self._made_of: dict[str, list[str]] = {name: [] for name in parts}

    def take(self, name: str, where: str) -> nn.Module:
        """The part of a name.

        Args:
            name: Key of ``model.parts``.
            where: Config key that names it, for errors.

        Returns:
            The one module of that name; built with the first call.

        Raises:
            ConfigError: There is no such part, it is made of itself, or it cannot be built.
        """
        if name not in self._parts:
            known = (
                f"`model.parts` has {', '.join(self._parts)}" if self._parts else "there is no `model.parts`"
            )
            raise ConfigError(
                f"`{where}` is {name!r}: a text names a shared part, and {known}{suggest(name, self._parts)}"
            )
        if self._open:
            self._made_of[self._open[-1]].append(name)
        if name in self._open:
            raise ConfigError(
                f"`model.parts`: {' -> '.join([*self._open, name])}: a part cannot be made of itself"
            )
        if name not in self._built:
            self._open.append(name)
            part = build_part(self._parts[name], self._lmm, f"model.parts.{name}", self)
            self._open.pop()
            if not isinstance(part, nn.Module):
                raise ConfigError(f"`model.parts.{name}` is a {type(part).__name__}; a part is a module")
            self._built[name] = part
            self._trainable[name] = [p for p in part.parameters() if p.requires_grad]
        return self._built[name]

    def settle(self, heads: Mapping[str, Head[Any]]) -> SharedParts:
        """Decides which parts are trained, once all heads are built: those that one head trains.

        Args:
            heads: By name.

        Returns:
            All parts, to be registered before the heads, so that theirs are the parameters' names.

        Raises:
            ConfigError: A part is in no head.
        """
        for name in self._parts:
            part = self.take(name, f"model.parts.{name}")
            users = [head for head in heads.values() if any(module is part for module in head.modules())]
            if not users:
                raise ConfigError(
                    f"`model.parts.{name}` is in no head: name it in one (for example sam={name!r}), or leave it out"
                )
            if any(head.trains(part) for head in users):
                reached = {id(p) for head in users for p in head.trained_parameters(part)}
                # A head that uses a part as it is has frozen it when it was built, for all.
                for parameter in self._trainable[name]:
                    parameter.requires_grad_(id(parameter) in reached)
                for head in users:
                    if not head.trains(part):
                        head.keep_as_is(part)
        # By name, not by the order of a config: MMEngine sorts the keys of those it writes.
        order: dict[str, nn.Module] = {}

        def add(name: str) -> None:
            for inner in sorted(self._made_of[name]):
                add(inner)
            order.setdefault(name, self._built[name])

        for name in sorted(self._parts):
            add(name)
        return SharedParts(order)


def other_names(model: nn.Module) -> dict[str, str]:
    """Places at which shared parts also stand: beginnings of parameter names there -> those of their own names.

    Args:
        model: A :class:`~flmm_detseg.models.grounding_lmm.GroundingLMM`, or one without shared parts.

    Returns:
        Prefixes with their dots, e.g. ``heads.detection.sam.`` -> ``parts.sam.``; empty where nothing is shared.
    """
    parts = dict(model.named_children()).get(PREFIX.rstrip("."))
    if not isinstance(parts, SharedParts):
        return {}
    own: dict[int, str] = {}
    for name, part in parts.items():
        own.setdefault(id(part), f"{PREFIX}{name}.")
    return {
        f"{path}.": own[id(module)]
        for root in ("parts", "heads")
        for path, module in model.get_submodule(root).named_modules(prefix=root, remove_duplicate=False)
        if id(module) in own and f"{path}." != own[id(module)]
    }


def to_own_names(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors of shared parts get their own names; so does what was trained before the part was shared.

    Args:
        model: See :func:`other_names`.
        tensors: Of a checkpoint.
        source: Named in errors.

    Returns:
        The tensors themselves (nothing is copied), each once.

    Raises:
        CheckpointError: Two heads of the checkpoint each have their own, and they differ.
    """
    others = other_names(model)
    found: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    for name, tensor in tensors.items():
        own = _renamed(name, others)
        if own in found and not (found[own].shape == tensor.shape and bool((found[own] == tensor).all())):
            raise CheckpointError(
                f"{source} holds {stored[own]} and {name}, which differ, and the model has one part for both "
                f"({own}). Keep the parts apart in `model.heads`, or leave one of them out of the file"
            )
        found[own], stored[own] = tensor, name
    return found


def save_once(model: nn.Module) -> None:
    """Lets a model's ``state_dict`` hold shared parts once, by their own names, and ``load_state_dict`` take that."""
    model.register_state_dict_post_hook(_drop_other_names)
    model.register_load_state_dict_pre_hook(_add_other_names)


def _drop_other_names(
    model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, metadata: Any
) -> None:
    others = other_names(model)
    for name in list(state_dict):
        local = name.removeprefix(prefix)
        if _renamed(local, others) != local:
            del state_dict[name]


def _add_other_names(model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    for place, own in other_names(model).items():
        for name in [name for name in state_dict if name.startswith(prefix + own)]:
            state_dict.setdefault(prefix + place + name.removeprefix(prefix + own), state_dict[name])


def _renamed(name: str, others: Mapping[str, str]) -> str:
    """The own name of a tensor; a part within a part ends at its own."""
    for place in _beginnings(name):
        if place in others:
            return _renamed(others[place] + name.removeprefix(place), others)
    return name


def _beginnings(name: str) -> Iterator[str]:
    """``a.``, ``a.b.``, ... of a dotted name."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count]) + "."
