"""A trained projector in place of the model's, which stays as it is; one for all images or one per modality."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
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
        module = self.base_layer
        part = projector_of([part for part, _ in self._owners], _modality.get())
        for owner, index in self._owners:
            if owner is part:
                module = owner.copies[index]
        return module(*args, **kwargs)


@MODELS.register_module()
class OwnProjector(LMMPart):
    """A copy of the model's projector, trained in its place; in base mode the model's own projects.

    Begins as the model's own projector, so nothing changes before training. Several of them, each for its own
    ``modalities``, make an LMM that reads other kinds of pictures (depth, heat) without a change to how it reads
    photos.

    Args:
        reset: Begin with new random weights of the usual ranges instead.
        modalities: Reads only images of these modalities (:attr:`~flmm_detseg.structures.Sample.modalities`); None:
            all that no other projector of one's own names.

    Raises:
        ConfigError: ``modalities`` is empty, or no list of names.
    """

    def __init__(self, reset: bool = False, modalities: Sequence[str] | None = None) -> None:
        super().__init__()
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
            own = copy.deepcopy(place.base_layer).requires_grad_(True)
            if self.reset:
                for child in own.modules():
                    reset_parameters = getattr(child, "reset_parameters", None)
                    if reset_parameters is not None:
                        reset_parameters()
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
            setattr(model.get_submodule(parent), leaf, own)


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
