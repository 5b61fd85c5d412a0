"""Batches of samples, and an epoch-aware sampler for datasets that draw per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS

from flmm_detseg.datasets.mix import ImageMix
from flmm_detseg.errors import ConfigError
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
    """MMEngine's ``DefaultSampler`` that also passes its epoch to the dataset.

    MMEngine's loops call ``set_epoch`` of the sampler only; datasets that draw one sentence (or a weighted
    mix) per epoch need it too. Works with persistent worker processes.
    """

    _start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Selects the epoch of the order and of the dataset's random choices.

        Args:
            epoch: Number of the pass over the data.
            start: Indices of this process to leave out at the beginning of the next pass (a resumed run).
        """
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        return islice(super().__iter__(), start, None)


@DATA_SAMPLERS.register_module()
class ImageSampler(EpochSampler):
    """For :class:`~flmm_detseg.datasets.ImageMix`: gives whole visits of images to the processes, in the mix's order.

    Args:
        dataset: The mix.
        seed: MMEngine hands its own to every sampler; the order is the mix's, whatever it is.

    Raises:
        ConfigError: The data set is no such mix.
    """

    def __init__(self, dataset: ImageMix, seed: int | None = None) -> None:
        if not isinstance(dataset, ImageMix):
            raise ConfigError(
                f"ImageSampler is for ImageMix, `dataset` is a {type(dataset).__name__}; use EpochSampler"
            )
        # A given number, so that the processes need not agree on a random one.
        super().__init__(dataset, shuffle=False, seed=seed or 0)
        self.per_image = dataset.per_image
        self.num_samples = math.ceil(dataset.epoch_length / self.world_size) * self.per_image
        self.total_size = self.num_samples * self.world_size

    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        # The last visits may repeat the first ones, so that every process has as many.
        visits = range(self.rank, self.total_size // self.per_image, self.world_size)
        images = (visit % self.dataset.epoch_length for visit in visits)
        indices = (image * self.per_image + place for image in images for place in range(self.per_image))
        return islice(indices, start, None)
