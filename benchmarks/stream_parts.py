"""What the benchmarks of the background cache share: a store that keeps L1 only, and streams by turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from torch import Tensor

from flmm_detseg.cache import BackgroundCache, BackgroundKey, Namespace, PrefixKV
from flmm_detseg.datasets.tinyworld.streams import StreamItem, make_stream


class FeaturesOnlyCache(BackgroundCache):
    """Keeps vision features, never keys and values: every hit is L1, as behind Redis or under memory pressure."""

    def insert(
        self,
        key: BackgroundKey,
        namespace: Namespace,
        *,
        features: Tensor | None,
        prefix: PrefixKV | None = None,
        prefix_key: str | None = None,
        saved_ms: Mapping[str, float],
        session: str | None = None,
    ) -> bool:
        """See :class:`BackgroundCache`; the prefix is left out."""
        if features is None:
            return False
        saved = {"L1": saved_ms["L1"]}
        return super().insert(key, namespace, features=features, saved_ms=saved, session=session)


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
