"""What a model was trained on, as its config tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config


def trained_on(config: Config) -> list[str]:
    """The data sets of a training.

    Args:
        config: Of a training, or of a stored model, which has them as text.

    Returns:
        A line each: class, and the files that it names; empty where nothing is known.
    """
    return list(config.get("trained_on") or _data_of(config.get("train_dataloader")))


def _data_of(loader: Any) -> Iterator[str]:
    if isinstance(loader, list | tuple):
        for item in loader:
            yield from _data_of(item)
    if not isinstance(loader, Mapping):
        return
    kind = getattr(loader.get("type"), "__name__", loader.get("type"))
    files = [
        str(v) for key, v in loader.items() if isinstance(v, str) and key.endswith(("_file", "_json", "_dir"))
    ]
    if kind is not None and files:
        yield f"{str(kind).rpartition('.')[2]}: {', '.join(files)}"
    for value in loader.values():
        if isinstance(value, Mapping | list | tuple):
            yield from _data_of(value)
