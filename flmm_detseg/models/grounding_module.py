"""What checkpoints need to know of a model beside its tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.models.balancer import TaskBalancer


class GroundingModule(nn.Module, ABC):
    """An LMM and its heads; :class:`~flmm_detseg.models.grounding_lmm.GroundingLMM` is the one.

    Attributes:
        lmm: The adapter.
        heads: By name.
        balancer: Of the heads' losses; None: there is none.
        allow_other_lmm: Accept tensors that were trained on another LMM.
        checkpoint_buffers: Names of the parameters of heads that the config freezes: they may come from another
            training, so that checkpoints hold them too.
        published: Of these, those that a file may leave out: they are as a refiner's own file has them.
        unloaded: Parameters that are kept as they are, though no file has given them yet: still random.
    """

    lmm: LMMAdapter
    heads: nn.ModuleDict
    balancer: TaskBalancer | None
    allow_other_lmm: bool
    checkpoint_buffers: tuple[str, ...] = ()
    published: frozenset[str] = frozenset()
    unloaded: frozenset[str] = frozenset()

    @abstractmethod
    def order_heads(self, names: Sequence[str]) -> None:
        """Puts the heads into another order, before an optimizer knows their parameters.

        Args:
            names: Of all heads.
        """
