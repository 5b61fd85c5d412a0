"""A trained projector in place of the model's, which stays as it is; one for all images or one per modality."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import RGB

# Modality of the images that the projector reads in this thread.
_modality: ContextVar[str] = ContextVar("modality", default=RGB)


@contextmanager
def projecting(modality: str) -> Iterator[None]:
    """Context in which the images that go through the model are of this modality."""
    token = _modality.set(modality)
    try:
        yield
    finally:
        _modality.reset(token)


class Replaced(nn.Module):
    """Replaces a module of the model, and calls that module or the part's for the images' modality.

    A part's module may be of another dtype than the model: it is given its own, and what it returns has the model's.

    Args:
        base: The model's; becomes ``base_layer``.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        # Pairs, which are no modules: the parts' tensors have their own names, and none here.
        self._owners: list[tuple[OwnProjector, int]] = []

    def add(self, part: OwnProjector, index: int) -> None:
        """Lets a part take the module's place for its modalities.

        Args:
            part: Whose module is called while it is active.
            index: Of that module.
        """
        self._owners.append((part, index))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the module does."""
        part = projector_of([part for part, _ in self._owners], _modality.get())
        for owner, index in self._owners:
            if owner is part:
                return _in_own_dtype(owner.copies[index], args, kwargs)
        return self.base_layer(*args, **kwargs)


def _in_own_dtype(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module returns, in the dtype of what it is given."""
    floats = [
        value
        for value in (*args, *kwargs.values())
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    own = next((weight.dtype for weight in module.parameters()), None)
    given = floats[0].dtype if floats else None
    if own is None or given is None or own == given:
        return module(*args, **kwargs)
    own_kwargs = {name: _cast(value, own) for name, value in kwargs.items()}
    return _cast(module(*_cast(args, own), **own_kwargs), given)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return tuple(_cast(item, dtype) for item in value) if isinstance(value, tuple) else value


@MODELS.register_module()
class OwnProjector(LMMPart):
    """A copy of the model's projector, trained in its place; in base mode the model's own projects.

    Begins as the model's own projector, so nothing changes before training. Several of them, each for its own
    ``modalities``, make an LMM that reads other kinds of pictures (depth, heat) without a change to how it reads
    photos. Its weights are float32 whatever the model's are, as LoRA's: in bfloat16 small steps would be rounded away.

    Args:
        reset: Begin with new random weights instead: what torch's layers begin with, else what the model's class begins
            with; a matrix that begins with zeros there, or is no layer's, is drawn with the standard deviation of the
            model's ``initializer_range``. Norms begin as ones that change nothing.
        modalities: Reads only images of these modalities (:attr:`~flmm_detseg.structures.Sample.modalities`); None:
            all that no other projector of one's own names.

    Raises:
        ConfigError: ``modalities`` is empty, or no list of names; ``reset`` is no switch.
    """

    def __init__(self, reset: bool = False, modalities: Sequence[str] | None = None) -> None:
        super().__init__()
        if not isinstance(reset, bool):
            raise ConfigError(f"OwnProjector: `reset` is {reset!r}; True or False is needed")
        if modalities is not None and (
            isinstance(modalities, str)
            or not modalities
            or not all(isinstance(name, str) and name for name in modalities)
        ):
            raise ConfigError(
                f"OwnProjector: `modalities` is {modalities!r}; a list of names such as ['depth'] is needed, or None"
            )
        self.reset = reset
        self.modalities = None if modalities is None else tuple(dict.fromkeys(modalities))
        self.copies = nn.ModuleList()
        self._paths: list[str] = []

    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """See :class:`LMMPart`."""
        for path in facts.parts["projector"]:
            module = model.get_submodule(path)
            if isinstance(module, nn.ModuleList):  # never called itself
                self._paths.extend(f"{path}.{name}" for name, _ in module.named_children())
            else:
                self._paths.append(path)
        if not self._paths:
            raise ConfigError("OwnProjector: this LMM names no projector")
        for index, path in enumerate(self._paths):
            place = model.get_submodule(path)
            if not isinstance(place, Replaced):
                place = Replaced(place)
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, place)
            own = copy.deepcopy(place.base_layer).float().requires_grad_(True)
            if self.reset:
                _draw_anew(own, _class_of(model, path), path)
            self.copies.append(own)
            place.add(self, index)
            place.base_layer.requires_grad_(False)

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        named = {} if self.modalities is None else {"modalities": list(self.modalities)}
        return {"replaces": list(self._paths), **named}

    def settle(self, model: PreTrainedModel) -> None:
        """See :class:`LMMPart`."""
        if self.modalities is not None:
            raise ConfigError(
                f"OwnProjector for {', '.join(self.modalities)} cannot be exported: the model's own class has one "
                "projector for all images. Leave it out of `model.lmm.parts`, or keep using it from here"
            )
        for path, own in zip(self._paths, self.copies, strict=True):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, own.to(model.dtype))


def _class_of(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost model of transformers around a module: its class knows what the module begins with."""
    names = path.split(".")
    around = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    return next(module for module in reversed(around) if isinstance(module, PreTrainedModel))


@torch.no_grad()
def _draw_anew(module: nn.Module, model: PreTrainedModel, path: str) -> None:
    """Gives every tensor of a projector a new value, see :class:`OwnProjector`.

    Raises:
        ConfigError: Nothing says what a tensor begins with.
    """
    for weight in module.parameters():
        weight.fill_(math.nan)  # whatever is left of it was not drawn
    for child in module.modules():
        reset_parameters = getattr(child, "reset_parameters", None)
        if reset_parameters is None:
            model._init_weights(child)
        else:
            reset_parameters()
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, weight in module.named_parameters():
        if weight.is_meta:
            continue
        missing = bool(weight.isnan().any())
        if weight.ndim > 1 and (missing or not weight.any()):
            weight.normal_(std=std)
        elif missing:
            raise ConfigError(
                f"OwnProjector: reset=True does not know what `{path}.{name}` begins with; leave `reset` out: it then "
                "begins as the model's own projector"
            )


def projector_of(parts: Collection[OwnProjector], modality: str) -> OwnProjector | None:
    """Which projector reads images of a modality; None: the model's own."""
    active = [part for part in parts if part.active]
    for part in active:
        if part.modalities is not None and modality in part.modalities:
            return part
    return next((part for part in active if part.modalities is None), None)


def projectors(parts: Mapping[str, nn.Module]) -> list[OwnProjector]:
    """The projectors among the parts of an LMM.

    Args:
        parts: By name.

    Returns:
        In their order.

    Raises:
        ConfigError: Two are for the same images.
    """
    found: dict[str | None, str] = {}
    for name, part in parts.items():
        if isinstance(part, OwnProjector):
            for modality in (None,) if part.modalities is None else part.modalities:
                if modality in found:
                    whose = "all images" if modality is None else f"{modality!r} images"
                    raise ConfigError(
                        f"`lmm.parts.{found[modality]}` and `lmm.parts.{name}` are both the projector of {whose}; give "
                        "each its own `modalities`"
                    )
                found[modality] = name
    return [part for part in parts.values() if isinstance(part, OwnProjector)]
