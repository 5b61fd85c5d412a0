"""The head contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates, Prediction, Sample


class Head(nn.Module, ABC):
    """Turns captured LMM states into predictions. Takes built parts and scalars, never configs.

    Attributes:
        tasks: Tasks (:attr:`Sample.task`) whose samples the head reads; it is given no others.
    """

    tasks: ClassVar[frozenset[str]]

    def wants(self, sample: Sample) -> bool:
        """Whether the head is given a sample. A head that learns from ``"joint"`` samples may leave those out that
        carry nothing for it; a sample of its own task without targets is given to it, and is an error.
        """
        return sample.task in self.tasks

    @property
    @abstractmethod
    def capture(self) -> CaptureSpec:
        """What the head needs from the LMM."""

    @abstractmethod
    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Scalars; keys containing ``loss`` are summed into the objective, others are logged.

        Raises:
            DataError: A sample carries no target for this head.
        """

    def num_targets(self, batch: GroundingBatch) -> float:
        """How many targets (or sum of weights) the losses are averaged over: the weight of this process's share of a
        step.
        """
        return sum(inputs.num_phrases for inputs in batch.inputs)

    @abstractmethod
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Prediction]:
        """One prediction per sample, in order."""


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names of a head.

    Raises:
        ConfigError: None, one that occurs twice, or the name of a list: only a config may use that.
    """
    if isinstance(names, str):
        raise ConfigError(
            f"`class_names` is {names!r}; in Python a head takes the names themselves "
            "(flmm_detseg.datasets.class_names.named_classes gives those of a list)"
        )
    names = tuple(names)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"`class_names` {names[:5]}... must be different names, at least one")
    return names
