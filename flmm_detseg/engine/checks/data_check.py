"""The data check as a tool: every problem on a line, a picture to look at, figures at the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_detseg.datasets.checks import DataCheck, check_dataset, find_datasets
from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import Sample
from flmm_detseg.utils.outputs import refuse_overwrite
from flmm_detseg.visualization import draw_detections, draw_grounding, draw_semantic

_TILE = (360, 380)  # (H, W) of one sample in the preview
_MAX_REMARKS = 20  # printed of each kind


def datasets_of_config(path: str) -> dict[str, Mapping[str, Any]]:
    """Data sets of a config file, by dotted key.

    Args:
        path: Config file.

    Returns:
        Their configs by key, such as ``train_dataloader.dataset``.

    Raises:
        ConfigError: It cannot be read, or has none.
    """
    # Reading configs comes with all model code; a check of plain files need not wait for it.
    from flmm_detseg.models.from_config import read_config

    found = dict(find_datasets(read_config(path)))
    if not found:
        raise ConfigError(f"{path}: it has no `*_dataloader` and no `*_eval` with data sets")
    return found


def check_data(
    datasets: Mapping[str, Mapping[str, Any]], preview: str | None = None, num_examples: int = 6
) -> tuple[dict[str, Any], int]:
    """Checks data sets, prints each problem (and some remarks) on a line, and draws some samples.

    Args:
        datasets: Data set configs by name.
        preview: Picture file to write; None: none.
        num_examples: Samples of each data set in the picture.

    Returns:
        Figures, and the number of problems.
    """
    checks: list[DataCheck] = []
    for name, config in datasets.items():
        check = check_dataset(name, config, num_examples=num_examples if preview else 0)
        for problem in check.problems:
            print(f"{problem.kind}: {problem}", flush=True)
        _print_remarks(check)
        checks.append(check)
    num_problems = sum(len(check.problems) for check in checks)
    figures: dict[str, Any] = {"problems": num_problems, "data_sets": {c.name: c.figures() for c in checks}}
    examples = [draw_sample(sample, check.metainfo) for check in checks for sample in check.examples]
    if preview and examples:
        refuse_overwrite(preview, [file for check in checks for file in check.files])
        Path(preview).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(examples)).save(preview)
        figures["preview"] = preview
    return figures, num_problems


def _print_remarks(check: DataCheck) -> None:
    """The first remarks of each kind, and how many more there are."""
    numbers = Counter[str]()
    for remark in check.remarks:
        numbers[remark.kind] += 1
        if numbers[remark.kind] <= _MAX_REMARKS:
            print(f"remark, {remark.kind}: {remark}", flush=True)
    for kind, number in numbers.items():
        if number > _MAX_REMARKS:
            print(f"remark, {kind}: {number - _MAX_REMARKS} more", flush=True)


def draw_sample(sample: Sample, metainfo: Mapping[str, Any]) -> np.ndarray:
    """One sample with all that is known about it: phrases, boxes, label map, question and answer.

    Args:
        sample: With targets.
        metainfo: Its data set's ``classes`` and ``semantic_classes``, where it has them.

    Returns:
        RGB uint8 ``[H, W, 3]``.
    """
    masks = sample.masks if sample.masks is not None else np.zeros((0, *sample.image_size), dtype=bool)
    names = [sample.phrase_text(k) for k in range(len(sample.phrases))]
    if sample.phrases or sample.dense is None:
        caption = sample.text if sample.prompt is None else f"{sample.prompt} -> {sample.text}"
        start = len(caption) - len(sample.text)
        spans = [[(start + a, start + b) for a, b in phrase.spans] for phrase in sample.phrases]
        return draw_grounding(sample.image, masks, names, caption=caption, spans=spans)
    dense = sample.dense
    if dense.boxes_xyxy is None:
        assert dense.semantic is not None
        return draw_semantic(sample.image, dense.semantic, metainfo["semantic_classes"])
    assert dense.labels is not None
    names = [metainfo["classes"][label] for label in dense.labels]
    return draw_detections(sample.image, dense.boxes_xyxy, names, masks=dense.masks)


def contact_sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (at least one) in rows of three, each made to fit its tile; RGB uint8 ``[H, W, 3]``."""
    columns = min(3, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * _TILE[1], rows * _TILE[0]), "white")
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(picture)
        tile.thumbnail((_TILE[1] - 10, _TILE[0] - 10))
        sheet.paste(tile, (number % columns * _TILE[1] + 5, number // columns * _TILE[0] + 5))
    return np.asarray(sheet)
