"""Configs by name: those of the current folder, of the repository, and of the installed package."""

from __future__ import annotations

from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.names import suggest
from flmm_detseg.utils.paths import find, is_file, places, roots

FOLDER = "configs"
# What the quickstart trains, stored with this package: knows the synthetic TinyWorld and nothing else.
TINY_CONFIG = "configs/tiny/frozen_tiny_llava_refcoco_png.py"
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
        config: A file (looked up as :func:`~flmm_detseg.utils.paths.find` does), or the name of a config in the folder
            ``configs`` of the current folder, the repository or the installed package: ``tiny/detseg_joint``, or the
            last part of it alone.
        what: Word for it in the error, for example of plans of several runs.

    Raises:
        ConfigError: There is none, or several have that name; says where it was looked for.
    """
    path = find(config)
    if is_file(path):
        return path
    name = str(config).removeprefix(f"{FOLDER}/").removesuffix(".py")
    known: list[str] = []
    for root in (Path(), *roots()):
        configs = _configs(root)
        known += configs
        found = [other for other in configs if other == name or Path(other).name == name]
        if name in found:
            return configs[name]
        if len(found) > 1:
            raise ConfigError(f"{what} {config}: {', '.join(sorted(found))} have that name; give one of them")
        if found:
            return configs[found[0]]
    near = suggest(name, known) or suggest(name, [Path(other).name for other in known])
    raise ConfigError(
        f"{what} {path} does not exist ({places(config)}; `flmm-detseg list-configs` lists those that come with "
        f"the package){near}"
    )


def _configs(root: Path) -> dict[str, Path]:
    folder = root / FOLDER
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.py")}
