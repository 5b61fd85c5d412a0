"""Lists of class names that have a name of their own."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_detseg.errors import ConfigError


def named_classes(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Class names of a list, or of the name of a well-known list.

    Args:
        classes: Names; or ``"tinyworld"`` (things, then stuff), ``"tinyworld_things"``, ``"coco"`` (80 things), or a
            list of mmseg's (``"ade20k"``, ``"cityscapes"``, ...).

    Returns:
        The names, in the order of their labels.

    Raises:
        ConfigError: The name is unknown.
    """
    if not isinstance(classes, str):
        return tuple(classes)
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
            "ade20k, cityscapes, ..."
        ) from None
