"""The data check as a tool: every problem on a line, a picture to look at, figures at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_detseg.datasets.checks import DataCheck, check_dataset, find_datasets
from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import Sample
from flmm_detseg.visualization.overlay import draw_grounding

_TILE = (360, 380)  # (H, W) of one sample in the preview


def datasets_of_config(path: str) -> dict[str, Mapping[str, Any]]:
    """Data sets of a config file, by dotted key.

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
    """Checks data sets, prints each problem on a line, and draws some samples.

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
        checks.append(check)
    num_problems = sum(len(check.problems) for check in checks)
    figures: dict[str, Any] = {"problems": num_problems, "data_sets": {c.name: c.figures() for c in checks}}
    examples = [sample for check in checks for sample in check.examples]
    if preview and examples:
        Path(preview).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_samples(examples)).save(preview)
        figures["preview"] = preview
    return figures, num_problems


def draw_samples(samples: Sequence[Sample]) -> np.ndarray:
    """Samples with their masks, phrases and texts, side by side.

    Args:
        samples: At least one, with masks.

    Returns:
        RGB uint8 ``[H, W, 3]``.
    """
    columns = min(3, len(samples))
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * _TILE[1], rows * _TILE[0]), "white")
    for number, sample in enumerate(samples):
        assert sample.masks is not None
        phrases = [sample.phrase_text(k) for k in range(len(sample.phrases))]
        spans = [phrase.spans for phrase in sample.phrases]
        drawn = draw_grounding(sample.image, sample.masks, phrases, caption=sample.text, spans=spans)
        tile = Image.fromarray(drawn)
        tile.thumbnail((_TILE[1] - 10, _TILE[0] - 10))
        sheet.paste(tile, (number % columns * _TILE[1] + 5, number // columns * _TILE[0] + 5))
    return np.asarray(sheet)
