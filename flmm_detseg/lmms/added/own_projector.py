"""A trained projector in place of the model's, which stays as it is; one for all images or one per modality."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.projector_part import ProjectorPart, Shown, is_names
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS


@MODELS.register_module()
class OwnProjector(ProjectorPart):
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
        if modalities is not None and not (modalities and is_names(modalities)):
            raise ConfigError(
                f"OwnProjector: `modalities` is {modalities!r}; a list of names such as ['depth'] is needed, or None"
            )
        self.reset = reset
        self.modalities = None if modalities is None else tuple(dict.fromkeys(modalities))

    def make_copy(self, base: nn.Module, model: PreTrainedModel, path: str, facts: LMMFacts) -> nn.Module:
        """See :class:`ProjectorPart`."""
        own = copy.deepcopy(base).float().requires_grad_(True)
        if self.reset:
            _draw_anew(own, _class_of(model, path), path)
        return own

    def project(self, own: nn.Module, base: nn.Module, shown: Shown, call: Callable[[nn.Module], Any]) -> Any:
        """See :class:`ProjectorPart`."""
        return call(own)

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
