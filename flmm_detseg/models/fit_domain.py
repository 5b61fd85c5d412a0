"""Learns from a folder of training pictures which pictures a model knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_detseg.datasets.images import load_image
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.models.domain import Domain
from flmm_detseg.utils.paths import find, places

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))


def fit_domain(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    source: str | None = None,
    max_pictures: int = 2000,
    false_alarms: float = 0.0025,
) -> dict[str, Any]:
    """Fits a domain to the pictures in folders and writes it.

    Args:
        folders: Looked through with all that is in them.
        out: File to write.
        source: What the pictures are, for people; None: the folders' names.
        max_pictures: Of more, so many are taken, evenly spread over the sorted names.
        false_alarms: See :meth:`~flmm_detseg.models.domain.Domain.fit`.

    Returns:
        ``out``, ``num_pictures``, ``threshold``, ``source``.

    Raises:
        DataError: No such folder, or a picture cannot be read.
        ConfigError: There is a file at ``out``, too few pictures, or a number cannot be used.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists already; name another file, or remove it first")
    files = [file for folder in folders for file in _pictures(folder)]
    chosen = files
    if len(files) > max_pictures:
        chosen = [
            files[index] for index in np.linspace(0, len(files) - 1, max(1, max_pictures)).round().astype(int)
        ]
    text = source or ", ".join(Path(folder).resolve().name for folder in folders)
    bar = tqdm(chosen, desc="pictures")
    domain = Domain.fit((load_image(file) for file in bar), text, false_alarms=false_alarms)
    domain.save(out)
    return {
        "out": str(out),
        "num_pictures": domain.num_pictures,
        "threshold": round(domain.threshold, 3),
        "source": text,
    }


def _pictures(folder: str | Path) -> Iterator[Path]:
    root = find(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder of pictures ({places(folder)})")
    yield from sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
