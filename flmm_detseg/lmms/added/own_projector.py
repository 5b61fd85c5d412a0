"""A projector of one's own in place of the model's, which stays as it is."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS


class Replaced(nn.Module):
    """Stands where a module of the model stood, and calls it or the part's.

    Args:
        base: The model's; becomes ``base_layer``.
        part: Whose module is called while it is active.
        index: Of that module.
    """

    def __init__(self, base: nn.Module, part: OwnProjector, index: int) -> None:
        super().__init__()
        self.base_layer = base
        # In a tuple: the part's tensors have their own names, and none here.
        self._part = (part,)
        self._index = index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Arguments and result are the module's."""
        (part,) = self._part
        module = part.copies[self._index] if part.active else self.base_layer
        return module(*args, **kwargs)


@MODELS.register_module()
class OwnProjector(LMMPart):
    """A copy of the model's projector, trained in its place; in base mode the model's own projects.

    Begins as the model's own projector, so nothing changes before training.

    Args:
        reset: Begin with fresh random weights of the usual ranges instead.
    """

    def __init__(self, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset
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
            parent, _, leaf = path.rpartition(".")
            base = model.get_submodule(path)
            own = copy.deepcopy(base)
            if self.reset:
                for child in own.modules():
                    if hasattr(child, "reset_parameters"):
                        child.reset_parameters()
            self.copies.append(own)
            setattr(model.get_submodule(parent), leaf, Replaced(base, self, index))
            base.requires_grad_(False)

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        return {"replaces": list(self._paths)}

    def settle(self, model: PreTrainedModel) -> None:
        """See :class:`LMMPart`."""
        for path, own in zip(self._paths, self.copies, strict=True):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, own)
