"""Where numbers come from: hashes of files, versions of packages."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from flmm_detseg.utils.paths import find

_PACKAGES = (
    "flmm_detseg", "torch", "torchvision", "transformers", "mmengine", "mmdet", "mmsegmentation", "mmcv",
    "mmcv-lite", "segment-anything", "xtuner", "peft", "accelerate", "deepspeed", "numpy", "pycocotools",
    "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the installed ones its numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def file_hash(path: str | Path) -> str:
    """sha256 of a file, or of the names and contents of all files in a folder (hex)."""
    path = find(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def named_paths(value: object) -> set[Path]:
    """Files and folders that a config names: weights, annotations, images.

    Args:
        value: Nested dicts and lists of plain values; texts with a slash that exist are paths.

    Returns:
        Paths that exist.
    """
    if isinstance(value, Mapping):
        return set().union(*map(named_paths, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(named_paths, value))
    return {found} if isinstance(value, str) and "/" in value and (found := find(value)).exists() else set()
