"""Streams, interleaved, for the benchmarks of the background cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from flmm_detseg.datasets.tinyworld.streams import StreamItem, make_stream


def streams(
    plan: Mapping[tuple[str, str], float], num_items: int, num_frames: int, seed: int
) -> Iterator[list[StreamItem]]:
    """Draws streams until there are enough items.

    Args:
        plan: By kind and encoding the share of all items.
        num_items: Items in all.
        num_frames: Frames of a stream.
        seed: Of the world.
    """
    left = {cell: round(share * num_items) for cell, share in plan.items()}
    # Every stream has another number: no two show the same scene in two encodings.
    index = count()
    while any(left.values()):
        for cell in plan:
            if left[cell]:
                kind, encoding = cell
                items = make_stream(kind, seed, next(index), min(num_frames, left[cell]), encoding=encoding)
                left[cell] -= len(items)
                yield items
