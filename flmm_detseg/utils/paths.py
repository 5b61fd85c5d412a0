"""Where relative paths are looked for: what a config or a command names works from any folder."""

from __future__ import annotations

from pathlib import Path

from flmm_detseg.errors import DataError

# The checkout this package is imported from; of an installed wheel it is the folder of all packages.
REPOSITORY = Path(__file__).resolve().parents[2]
# Where a wheel has the repository's configs/ and data/models/ (setup.py puts them there).
SHIPPED = Path(__file__).resolve().parents[1] / "_shipped"


def find(path: str | Path) -> Path:
    """The file or folder that a config or a command line names.

    Args:
        path: Absolute, relative, or with ``~``.

    Returns:
        A relative path as it is where it exists below the current folder; else below the repository
        (``data/models/...``, ``configs/...``) or, of an installed wheel, below the copies of these that it contains, if
        it exists there; else as it is.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or _exists(path):
        return path
    return next((root / path for root in roots() if _exists(root / path)), path)


def roots() -> list[Path]:
    """Folders beside the current one in which :func:`find` looks: the checkout, or what a wheel has of it."""
    return [REPOSITORY] if is_checkout() else [SHIPPED] if SHIPPED.is_dir() else []


def image_file(path: str | Path, argument: str) -> Path:
    """:func:`find` for an image that a command names: before a model is loaded, which may take minutes.

    Args:
        path: As it was given.
        argument: Name of the argument, for the error.

    Returns:
        A file that exists.

    Raises:
        DataError: There is no such file.
    """
    found = find(path)
    if not found.is_file():
        what = (
            "is a folder, an image file is needed" if found.is_dir() else f"does not exist ({places(path)})"
        )
        raise DataError(f"{argument}: {path} {what}; check the path")
    return found


def places(path: str | Path) -> str:
    """For an error about a path that :func:`find` did not find: where it looked."""
    if Path(path).expanduser().is_absolute():
        return "an absolute path"
    also = "".join(f", then from {root}" for root in roots() if root != Path.cwd())
    return f"looked from {Path.cwd()}{also}"


def is_file(path: Path) -> bool:
    """``path.is_file()``; False for what no file can be called (too long, or NUL in it)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_checkout() -> bool:
    """Whether this package is imported from a checkout of its repository."""
    return (REPOSITORY / "configs").is_dir() and (REPOSITORY / "pyproject.toml").is_file()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file can have such a name: too long, or NUL in it
        return False
