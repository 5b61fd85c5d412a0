"""Configs by name: those of the current folder, of the repository, and of the installed package."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.hub import HUB, MODEL_FILE, model_folder
from flmm_detseg.utils.names import suggest
from flmm_detseg.utils.paths import find, is_file, places, roots

FOLDER = "configs"
_SUFFIXES = (".py", ".json", ".yaml", ".yml")
# What the quickstart trains, stored with this package: knows the synthetic TinyWorld and nothing else.
TINY_CONFIG = "configs/tiny/frozen_tiny_llava_refcoco_png.py"
TINY_LMM = "data/models/tiny_llava"
TINY_HEADS = "data/models/tiny_heads/heads.pth"


def shipped_configs() -> dict[str, Path]:
    """The configs that come with this package, without the parts in ``_base_`` that they are made of.

    Returns:
        Files by name, sorted; the name is the path below ``configs`` without ``.py``.
    """
    return {
        name: path
        for root in reversed(roots())
        for name, path in sorted(_configs(root).items())
        if not name.startswith("_base_/")
    }


def config_file(config: str | Path, what: str = "config") -> Path:
    """The file of a config that a command names.

    Args:
        config: A file that ends in ``.py`` (or ``.json``, ``.yaml``; looked up as
            :func:`~flmm_detseg.utils.paths.find` does), or the name of a config in the folder ``configs`` of the
            current folder, the repository or the installed package: ``tiny/detseg_joint``, or the last part of it
            alone. Where several have the name, the first one is meant, and a line on stderr names both. Or a model
            that was stored: its folder, or ``hf://owner/name`` (``@revision``).
        what: Word for it in the error, for example of plans of several runs.

    Returns:
        A file that exists; of a stored model its ``config.json``.

    Raises:
        ConfigError: There is none, or several have that name; says where it was looked for.
    """
    if str(config).startswith(HUB):
        return model_folder(config) / MODEL_FILE
    path = find(config)
    if path.suffix in _SUFFIXES and is_file(path):
        return path
    if is_file(path / MODEL_FILE):
        return path / MODEL_FILE
    name = str(config).removeprefix(f"{FOLDER}/").removesuffix(".py")
    folders = [_configs(root) for root in (Path(), *roots())]
    known = list(dict.fromkeys(other for configs in folders for other in configs))
    if exact := [configs[name] for configs in folders if name in configs]:
        return _first(str(config), exact)
    for number, configs in enumerate(folders):
        found = [other for other in configs if Path(other).name == name]
        if len(found) > 1:
            raise ConfigError(f"{what} {config}: {', '.join(sorted(found))} have that name; give one of them")
        if found:
            further = (other[key] for other in folders[number:] for key in other if Path(key).name == name)
            return _first(str(config), list(further))
    if is_file(path):
        return path
    near = suggest(name, dict.fromkeys([*known, *(Path(other).name for other in known)]))
    raise ConfigError(
        f"{what} {path} does not exist ({places(config)}; `flmm-detseg list-configs` lists those that come with "
        f"the package){near}"
    )


def config_name(config: str | Path) -> str:
    """What results of a config are called: its file's name, ``.py`` left out and other dots kept."""
    path = Path(config)
    return path.stem if path.suffix in _SUFFIXES else path.name


def _first(config: str, found: list[Path]) -> Path:
    """The first of several files with a name; says so where others are hidden by it."""
    hidden = [other for other in found[1:] if not other.samefile(found[0])]
    if hidden:
        _say(f"config {config}: {found[0]}, not {hidden[0]}, which has that name as well")
    return found[0]


@functools.cache
def _say(line: str) -> None:
    """Says something once; a command looks its config up several times."""
    print(line, file=sys.stderr)


def is_plan(path: Path) -> bool:
    """Whether a file is a plan of several runs (it has ``stages``), not a config; it is not executed."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    return any(isinstance(target, ast.Name) and target.id == "stages" for target in targets)


def _configs(root: Path) -> dict[str, Path]:
    folder = root / FOLDER
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.py")}
