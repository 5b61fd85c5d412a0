"""Lists of class names that have a name of their own."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_detseg.datasets.files import load_json, read_lines, require_keys, require_list
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text


def named_classes(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Class names of a list, or of the name of a well-known list.

    Args:
        classes: Names; or ``"tinyworld"`` (things, then stuff), ``"tinyworld_things"``, ``"coco"`` (80 things), or a
            list of mmseg's (``"ade20k"``, ``"cityscapes"``, ...); or a file: ``.txt`` with a name a line, ``.json``
            with ``labels`` (Mapillary Vistas' ``config_v2.0.json``), whose ``readable`` names are taken, in lower case.

    Returns:
        The names, in the order of their labels.

    Raises:
        ConfigError: The name is unknown.
        DataError: The file is missing or of another kind.
    """
    if not isinstance(classes, str):
        return tuple(classes)
    if classes.endswith(".txt"):
        return tuple(read_lines(classes, "list of class names"))
    if classes.endswith(".json"):
        return _readable_names(classes)
    if classes in ("tinyworld", "tinyworld_things"):
        from flmm_detseg.datasets.tinyworld.formats import CATEGORIES

        wanted = [c for c in CATEGORIES if classes == "tinyworld" or c["isthing"]]
        return tuple(str(category["name"]) for category in wanted)
    from flmm_detseg.compat import install

    install()  # before mmdet and mmseg
    if classes == "coco":
        from mmdet.evaluation import get_classes as mmdet_classes

        return tuple(mmdet_classes("coco"))
    from mmseg.utils import get_classes

    try:
        return tuple(get_classes(classes))
    except ValueError:
        raise ConfigError(
            f"`classes` {classes!r}: no list of that name; give the names, or tinyworld, tinyworld_things, coco, "
            "ade20k, cityscapes, ..., or a .txt or .json file of names"
        ) from None


def _readable_names(path: str) -> tuple[str, ...]:
    file = find(path)
    content = load_json(file, "file of class names")
    require_keys(content, ("labels",), file)
    names = []
    for position, entry in enumerate(require_list(content["labels"], "labels", file)):
        require_keys(entry, ("readable",), file, f"labels[{position}]")
        try:
            names.append(check_text(entry["readable"], "readable", empty=False).strip().lower())
        except FieldError as error:
            raise DataError(f"{file}: labels[{position}]: {error}. Give the published file.") from error
    return tuple(names)
