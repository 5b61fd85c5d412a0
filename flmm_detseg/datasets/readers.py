"""The readers that a data set is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def readers_of(dataset: Any) -> Iterator[Any]:
    """A data set, and what it wraps (``dataset``) or mixes (``datasets``), at any depth.

    Args:
        dataset: A reader, something made of one, or a mix.

    Yields:
        Each of them, the outermost first; one that occurs several times as often.
    """
    yield dataset
    inner = getattr(dataset, "dataset", None)
    for reader in [*([] if inner is None else [inner]), *getattr(dataset, "datasets", ())]:
        yield from readers_of(reader)
