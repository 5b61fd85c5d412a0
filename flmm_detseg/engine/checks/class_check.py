"""Do the labels of the data mean what the heads think they mean?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from flmm_detseg.datasets import COCOInstancesDataset, SemanticMapsDataset
from flmm_detseg.errors import ConfigError

# Of which task the labels of a reader are.
_TASKS = {COCOInstancesDataset: "detection", SemanticMapsDataset: "segmentation"}


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Compares the class names of heads with those of the data sets they learn from.

    Labels are numbers: with another order of classes everything would run, and every label would be wrong.

    Args:
        model: A ``GroundingLMM``.
        dataset: A reader, or a mix or wrapper of readers.

    Raises:
        ConfigError: They differ; names head, data set and the first difference.
    """
    heads: Any = model.heads
    for reader in _readers(dataset):
        tasks = {task for kind, task in _TASKS.items() if isinstance(reader, kind)}
        for name, head in heads.items():
            if head.class_names and tasks & head.tasks:
                _compare(name, tuple(head.class_names), tuple(reader.classes), reader)


def _readers(dataset: Any) -> Iterator[Any]:
    for part in (*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)):
        if part is not None:
            yield from _readers(part)
    yield dataset


def _compare(head: str, wanted: tuple[str, ...], given: tuple[str, ...], reader: Any) -> None:
    if wanted == given:
        return
    place = next(
        (i for i, pair in enumerate(zip(wanted, given)) if pair[0] != pair[1]), min(len(wanted), len(given))
    )
    ends = [names[place] if place < len(names) else "nothing" for names in (wanted, given)]
    raise ConfigError(
        f"`model.heads.{head}.class_names` has {len(wanted)} names, {type(reader).__name__} of "
        f"{reader.annotation_files[0] if reader.annotation_files else 'this data'} has {len(given)}; label {place} is "
        f"{ends[0]!r} in the head and {ends[1]!r} in the data. Give both the same list in the same order"
    )
