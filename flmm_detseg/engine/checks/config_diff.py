"""What a config changes against the configs it imports."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from flmm_detseg.models.from_config import read_config
from flmm_detseg.utils.configs import config_file


def base_files(path: str | Path) -> list[Path]:
    """Files that a lazy config imports under ``read_base()``, in order."""
    path = config_file(path)
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.With):
            for line in node.body:
                assert isinstance(line, ast.ImportFrom), "mmengine allows nothing else here"
                folder = path.resolve().parents[max(line.level - 1, 0)]
                found.append(folder.joinpath(*(line.module or "").split(".")).with_suffix(".py"))
    return found


def effective(config: Config) -> dict[str, Any]:
    """Leaves of a config by dotted key; types by their dotted names."""
    return dict(_leaves(config.to_dict(), ""))


def diff_to_base(path: str | Path, config: Config | None = None) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ from what the imported configs give together.

    Args:
        path: Config file.
        config: What it holds, overrides applied; None reads the file.

    Returns:
        Dotted key -> (value in the bases, value here); None stands for absent.

    Raises:
        ConfigError: The config cannot be read.
    """
    base: dict[str, Any] = {}
    for file in base_files(path):
        base.update(effective(Config.fromfile(file)))
    mine = effective(read_config(path) if config is None else config)
    keys = dict.fromkeys([*mine, *(key for key in base if _root(key) in map(_root, mine))])
    return {key: (base.get(key), mine.get(key)) for key in keys if base.get(key) != mine.get(key)}


def _root(key: str) -> str:
    return key.split(".")[0]


def _leaves(node: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        return [
            leaf for key, value in node.items() for leaf in _leaves(value, f"{where}.{key}" if where else key)
        ]
    if isinstance(node, (list, tuple)) and any(isinstance(value, Mapping) for value in node):
        return [leaf for i, value in enumerate(node) for leaf in _leaves(value, f"{where}.{i}")]
    return [(where, node)]
