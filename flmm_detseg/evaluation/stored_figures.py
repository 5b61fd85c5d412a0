"""Figures of a results file with their number of samples and, where a figure is a mean over them, its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.errors import DataError
from flmm_detseg.evaluation.bootstrap import bootstrap_interval
from flmm_detseg.evaluation.ref_seg_metric import phrase_iou
from flmm_detseg.evaluation.results import RecordStore
from flmm_detseg.utils.paths import find, is_file, places
from flmm_detseg.utils.whole_files import read_json

_KINDS, _GIOU, _SHARE = ("refined", "coarse"), "gIoU", "P@"


@dataclass(frozen=True)
class StoredFigure:
    """One number of a results file.

    Attributes:
        task: Kind of evaluation.
        data_set: Its name in the config.
        name: Of the figure.
        value: As it was measured.
        num_samples: Of the data set.
        interval: Bounds of 95 % (bootstrap over samples); None: it is no mean over samples, or their records are gone.
        weights: Hash of the weights that were measured (:func:`~flmm_detseg.evaluation.results.weights_hash`).
    """

    task: str
    data_set: str
    name: str
    value: float
    num_samples: int
    interval: tuple[float, float] | None
    weights: str


def read_figures(path: str | Path) -> list[StoredFigure]:
    """Reads a file that ``flmm-detseg evaluate`` wrote.

    Args:
        path: The results file; the records that it names give intervals where they are still there.

    Returns:
        Its figures, in the file's order.

    Raises:
        DataError: No such file, or it is no results file.
    """
    file = find(path)
    if not is_file(file):
        raise DataError(f"{path}: no such results file ({places(path)})")
    content = read_json(file, "evaluate again")
    try:
        figures = []
        for data_set, values in content["metrics"].items():
            report = content["data_sets"][data_set]
            records = _records(report)
            figures += [
                StoredFigure(
                    str(content["task"]),
                    data_set,
                    name,
                    float(value),
                    int(report["num_samples"]),
                    _interval(name, float(value), records),
                    str(content["weights_sha256"]),
                )
                for name, value in values.items()
            ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} is no results file of `flmm-detseg evaluate` ({type(error).__name__}: {error}); name its --out"
        ) from error
    return figures


def _records(report: Any) -> list[dict[str, Any]]:
    file = find(report["records_file"])
    if not is_file(file):
        return []
    return [fact for facts in RecordStore(file.parent, 0).read().values() for fact in facts]


def _interval(name: str, value: float, records: Sequence[Any]) -> tuple[float, float] | None:
    values: list[float] = []
    kind, _, measure = name.partition("_")
    if kind in _KINDS and (measure == _GIOU or measure.startswith(_SHARE)):
        values = [phrase_iou(r, kind) for r in records if kind in r and r["target_area"] > 0]
        if measure != _GIOU:
            values = [float(value >= float(measure.removeprefix(_SHARE))) for value in values]
    elif name == "accuracy":
        values = [float(r["score"]) for r in records if r.get("score") is not None]
    # Where empty targets count as well, the figure is a mean of something else.
    if len(values) < 2 or abs(float(np.mean(values)) - value) > 1e-6:
        return None
    return bootstrap_interval(np.array(values))
