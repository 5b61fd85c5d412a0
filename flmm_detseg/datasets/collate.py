"""Batches of samples, and an epoch-aware sampler for datasets that draw per epoch."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS

from flmm_detseg.structures import Sample


@FUNCTIONS.register_module()
def collate_samples(batch: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Puts samples into the batch form of every model and metric here; nothing is stacked or converted.

    Args:
        batch: Samples of any sizes.

    Returns:
        ``{"samples": [...]}``, in order.
    """
    return {"samples": list(batch)}


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler`` that also tells the dataset its epoch.

    MMEngine's loops call ``set_epoch`` of the sampler only; datasets that draw one sentence (or a weighted
    mix) per epoch need it too. Works with persistent worker processes.
    """

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of the order and of the dataset's random choices."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)
