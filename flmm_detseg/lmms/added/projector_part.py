"""Parts that compute in the projector's place, for all images or for some modalities, and who calls them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.structures import RGB


class Shown(NamedTuple):
    """What images are to the parts that project them.

    Attributes:
        modality: See :attr:`~flmm_detseg.structures.Sample.modalities`.
        task: Of their sample, where a part names it (:attr:`ProjectorPart.tasks`); else empty.
    """

    modality: str = RGB
    task: str = ""


# What the projector reads in this thread.
_shown: ContextVar[Shown] = ContextVar("shown", default=Shown())  # noqa: B039 (a tuple never changes)


@contextmanager
def projecting(shown: Shown) -> Iterator[None]:
    """Context in which the images that go through the model are of this modality and task."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


class ProjectorPart(LMMPart):
    """A part that computes in the place of the model's projector, which stays in the model and is frozen.

    Attributes:
        modalities: Reads only images of these; None: all that no other such part names.
        tasks: Tasks of samples whose images it reads otherwise than other samples'.
        copies: A module for each projector of the model that it takes the place of.
    """

    modalities: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ModuleList()
        self._paths: list[str] = []

    @property
    def unread_modalities(self) -> frozenset[str]:
        """Modalities that nothing but this part reads: photos are the untouched LMM's too."""
        return frozenset(self.modalities or ()) - {RGB}

    @abstractmethod
    def make_copy(
        self, base: nn.Module, model: PreTrainedModel, path: str, facts: LMMFacts
    ) -> nn.Module | None:
        """Makes what computes in the place of a projector.

        Args:
            base: The model's projector; may be on the meta device.
            model: Its model.
            path: Where it is.
            facts: Of the model.

        Returns:
            For :attr:`copies`; None for a module that the part leaves as it is.

        Raises:
            ConfigError: It cannot be made for this model.
        """

    @abstractmethod
    def project(self, own: nn.Module, base: nn.Module, shown: Shown, call: Callable[[nn.Module], Any]) -> Any:
        """Computes in the place of a projector.

        Args:
            own: The module of :attr:`copies` for it.
            base: The model's projector.
            shown: What the images are.
            call: Gives a projector what the model gives its own, in the projector's dtype, and returns what that makes
                of it, in the model's.

        Returns:
            What ``call(base)`` would, in shape and dtype.
        """

    def begin_pass(self) -> None:  # noqa: B027 (nothing to forget)
        """Forgets what it keeps of the last pass for :meth:`losses`."""

    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """See :class:`LMMPart`."""
        paths: list[str] = []
        for path in facts.parts["projector"]:
            module = model.get_submodule(path)
            if isinstance(module, nn.ModuleList):  # never called itself
                paths.extend(f"{path}.{name}" for name, _ in module.named_children())
            else:
                paths.append(path)
        for path in paths:
            place = model.get_submodule(path)
            base = place.base_layer if isinstance(place, Replaced) else place
            own = self.make_copy(base, model, path, facts)
            if own is None:
                continue
            if not isinstance(place, Replaced):
                place = Replaced(base)
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, place)
            place.add(self, len(self.copies))
            self.copies.append(own)
            self._paths.append(path)
            base.requires_grad_(False)
        if not self._paths:
            raise ConfigError(
                f"{type(self).__name__}: this LMM names no projector that it can take the place of"
            )


class Replaced(nn.Module):
    """Replaces a projector of the model, and calls it or the part that reads images of their modality.

    Args:
        base: The model's; becomes ``base_layer``.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        # Pairs, which are no modules: the parts' tensors have their own names, and none here.
        self._owners: list[tuple[ProjectorPart, int]] = []

    def add(self, part: ProjectorPart, index: int) -> None:
        """Lets a part take the module's place for its modalities.

        Args:
            part: Who is asked while it is active.
            index: Of its module for this place.
        """
        self._owners.append((part, index))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the module does."""
        shown = _shown.get()
        part = projector_of([part for part, _ in self._owners], shown.modality)
        for owner, index in self._owners:
            if owner is part:
                call = partial(_in_own_dtype, args=args, kwargs=kwargs)
                return owner.project(owner.copies[index], self.base_layer, shown, call)
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


def is_names(value: object) -> bool:
    """Whether a setting is a list of names, empty or not."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(name, str) and name for name in value)
    )


def projector_of(parts: Collection[ProjectorPart], modality: str) -> ProjectorPart | None:
    """Which part projects images of a modality; None: the model's own projector."""
    active = [part for part in parts if part.active]
    for part in active:
        if part.modalities is not None and modality in part.modalities:
            return part
    return next((part for part in active if part.modalities is None), None)


def projectors(parts: Mapping[str, nn.Module]) -> list[ProjectorPart]:
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
        if isinstance(part, ProjectorPart):
            for modality in (None,) if part.modalities is None else part.modalities:
                if modality in found:
                    whose = "all images" if modality is None else f"{modality!r} images"
                    raise ConfigError(
                        f"`lmm.parts.{found[modality]}` and `lmm.parts.{name}` are both the projector of {whose}; give "
                        "each its own `modalities`"
                    )
                found[modality] = name
    return [part for part in parts.values() if isinstance(part, ProjectorPart)]
