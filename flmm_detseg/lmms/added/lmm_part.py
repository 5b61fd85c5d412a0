"""Modules that are added to an LMM: named in a config, trained beside it, off in base mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS, SCOPE
from flmm_detseg.structures import Region


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


class SlotFiller(LMMPart):
    """A part that turns regions of an image into embeddings, which stand where its token stands in the prompt.

    Attributes:
        layers: Hidden states of the vision tower that it reads.
    """

    token: str = "<region>"
    layers: tuple[int, ...] = ()

    @abstractmethod
    def fill(self, maps: Sequence[Mapping[int, Tensor]], regions: Sequence[tuple[Region, Tensor]]) -> Tensor:
        """Embeddings of regions.

        Args:
            maps: Per region the maps ``[D, rows, cols]`` of its image, by layer.
            regions: Each with its share of the cells, float32 ``[rows, cols]``, sum 1; on the maps' device.

        Returns:
            ``[n, d]``.
        """


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
        ConfigError: No such part, or it does not fit.
    """
    parts: dict[str, LMMPart] = {}
    for name, settings in (config or {}).items():
        part = settings if isinstance(settings, nn.Module) else MODELS.build(dict(settings, _scope_=SCOPE))
        if not isinstance(part, LMMPart):
            raise ConfigError(
                f"`lmm.parts.{name}` is a {type(part).__name__}, which is no part of an LMM (LMMPart)"
            )
        part.attach(model, facts)
        parts[name] = part.requires_grad_(True)
    if len([part for part in parts.values() if isinstance(part, SlotFiller)]) > 1:
        raise ConfigError("`lmm.parts` has several parts that fill places of the prompt; one is possible")
    return parts


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
