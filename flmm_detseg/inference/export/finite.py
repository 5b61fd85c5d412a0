"""The guard of all exports: scores and boxes are numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from flmm_detseg.errors import RunError
from flmm_detseg.inference.regions import Region


def checked(regions: Iterable[Region]) -> Iterator[Region]:
    """The regions one by one, each with finite numbers.

    Args:
        regions: Of a result.

    Yields:
        The same ones.

    Raises:
        RunError: A score or box is NaN or infinite; names the label.
    """
    for region in regions:
        if not all(map(math.isfinite, (region.score, *region.box_xyxy))):
            raise RunError(
                f"{region.label!r}: score {region.score} or box {list(region.box_xyxy)} are no numbers, which JSON "
                "cannot hold; check the checkpoint and its precision"
            )
        yield region
