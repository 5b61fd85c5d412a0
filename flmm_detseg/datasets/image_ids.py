"""COCO image ids: read from file names, and lists of ids that training must not see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import load_json, require_file
from flmm_detseg.datasets.safe_pickle import load_plain_pickle
from flmm_detseg.errors import DataError

# 12 digits are COCO's; file names of Visual Genome, GQA and OCR-VQA are shorter numbers of other images.
_COCO_STEM = re.compile(r"(?:^|_)(\d{12})$")


def coco_id_of_path(path: str) -> int | None:
    """COCO image id of ``train2017/000000033471.jpg`` or ``COCO_train2014_000000033471.jpg``, None for other names."""
    match = _COCO_STEM.search(Path(path).stem)
    return int(match[1]) if match else None


def read_image_ids(files: str | Sequence[str]) -> frozenset[int]:
    """Image ids of one or more files that name images.

    Args:
        files: Each a COCO JSON (its ``images``), a JSON list of ids, ``refs(*).p`` of RefCOCO (the images of every
            split but ``train``), or a text with one id per line.

    Returns:
        The union.

    Raises:
        DataError: A file is missing, or none of these.
    """
    ids: set[int] = set()
    for file in [files] if isinstance(files, str) else files:
        path = require_file(file, "file of image ids")
        try:
            ids.update(int(value) for value in _values(path))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path}: no list of image ids ({type(error).__name__}: {error}). Give a COCO JSON, a JSON list, "
                "refs(*).p of RefCOCO, or a text with one id per line."
            ) from error
    return frozenset(ids)


def excluded_ids(files: str | Sequence[str] | None) -> frozenset[int]:
    """:func:`read_image_ids` for a reader's ``exclude_image_ids_file``; None excludes nothing."""
    return frozenset() if files is None else read_image_ids(files)


def _values(path: Path) -> list[Any]:
    if path.suffix == ".p":
        refs = load_plain_pickle(path, "refs file")
        return [ref["image_id"] for ref in refs if ref["split"] != "train"]
    if path.suffix == ".json":
        content = load_json(path, "file of image ids")
        return [entry["id"] for entry in content["images"]] if isinstance(content, dict) else list(content)
    return path.read_text(encoding="utf-8").split()
