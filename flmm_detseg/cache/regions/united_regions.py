"""Several sources of objects as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_detseg.cache.regions.sources import Regions, RegionSource
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample


@MODELS.register_module()
class UnitedRegions(RegionSource):
    """What any of several sources calls an object, e.g. texts and what changes in a stream.

    A policy can choose only by what all of them give.

    Args:
        sources: Two or more, or their configs; asked in this order.

    Raises:
        ConfigError: Fewer than two.
    """

    def __init__(self, sources: Sequence[RegionSource | Mapping[str, Any]]) -> None:
        if len(sources) < 2:
            raise ConfigError(f"`sources` has {len(sources)} entries; two or more are needed to unite them")
        self.sources = tuple(
            MODELS.build(source) if isinstance(source, Mapping) else source for source in sources
        )
        self.name = " + ".join(source.name for source in self.sources)
        self.gives = frozenset.intersection(*(source.gives for source in self.sources))

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`; a source without boxes in this image needs no scores or labels."""
        found = [source.find(sample) for source in self.sources]
        boxed = [regions for regions in found if len(regions.boxes_xyxy)]
        scores = [regions.scores for regions in boxed if regions.scores is not None]
        labels = [regions.labels for regions in boxed if regions.labels is not None]
        masks = [regions.mask for regions in found if regions.mask is not None]
        return Regions(
            boxes_xyxy=np.concatenate([regions.boxes_xyxy for regions in found]),
            scores=np.concatenate(scores) if boxed and len(scores) == len(boxed) else None,
            labels=[label for part in labels for label in part] if len(labels) == len(boxed) else None,
            mask=np.any(masks, axis=0) if masks else None,
        )
