"""The classes that are looked for, and the COCO ground truth that is already there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import load_json, require_keys, require_list
from flmm_detseg.errors import ConfigError, DataError


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        name: Category name of the output.
        category_id: Category id of the output.
        wordings: What the detector is asked for: the name as words, then synonyms.
    """

    name: str
    category_id: int
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class GroundTruth:
    """A COCO file whose annotations are kept.

    Attributes:
        file: It.
        categories: Its categories, as in the file.
        images: Its image entries by ``file_name``.
        annotations: Its annotations by image id, as in the file.
        licenses: Its licences, which image entries point to.
    """

    file: Path
    categories: tuple[dict[str, Any], ...]
    images: dict[str, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    licenses: list[Any] = field(default_factory=list)

    def of_image(self, file_name: str) -> list[dict[str, Any]]:
        """Annotations of an image; empty where the file does not list it."""
        entry = self.images.get(file_name)
        return [] if entry is None else self.annotations.get(entry["id"], [])


def read_ground_truth(file: str) -> GroundTruth:
    """Reads a COCO file.

    Raises:
        DataError: Missing, truncated, of another kind, or an entry is unusable; names file and entry.
    """
    content = load_json(file, "ground truth (COCO)")
    require_keys(content, ("images", "annotations", "categories"), file)
    images: dict[str, dict[str, Any]] = {}
    ids: set[int] = set()
    for number, entry in enumerate(require_list(content["images"], "images", file)):
        where = f"images[{number}]"
        require_keys(entry, ("id", "file_name", "height", "width"), file, where)
        _require_integers(entry, ("id", "height", "width"), file, where)
        if entry["file_name"] in images or entry["id"] in ids:
            raise DataError(
                f"{file}: {where}: image {entry['file_name']} or its id {entry['id']} occurs twice."
                " Mend the file."
            )
        images[entry["file_name"]] = entry
        ids.add(entry["id"])
    annotations: dict[int, list[dict[str, Any]]] = {}
    for number, entry in enumerate(require_list(content["annotations"], "annotations", file)):
        where = f"annotations[{number}]"
        require_keys(entry, ("id", "image_id", "category_id", "bbox"), file, where)
        _require_integers(entry, ("id", "image_id", "category_id"), file, where)
        if entry["image_id"] not in ids:
            raise DataError(f"{file}: {where}: image {entry['image_id']} is not in `images`. Mend the file.")
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise DataError(f"{file}: {where}: `bbox` {box} is not [x, y, width, height]. Mend the file.")
        annotations.setdefault(entry["image_id"], []).append(entry)
    categories = read_categories(file, content)
    return GroundTruth(Path(file), categories, images, annotations, content.get("licenses", []))


def read_categories(file: str, content: Any | None = None) -> tuple[dict[str, Any], ...]:
    """Categories of a COCO file, in the order of their ids.

    Args:
        file: The file.
        content: What it holds, if it was read already.

    Raises:
        DataError: Missing, or the categories are unusable.
    """
    content = load_json(file, "COCO file with categories") if content is None else content
    require_keys(content, ("categories",), file)
    entries = require_list(content["categories"], "categories", file)
    for number, entry in enumerate(entries):
        require_keys(entry, ("id", "name"), file, f"categories[{number}]")
        _require_integers(entry, ("id",), file, f"categories[{number}]")
    for key in ("id", "name"):
        if len({entry[key] for entry in entries}) != len(entries):
            raise DataError(f"{file}: two `categories` have the same {key}. Mend the file.")
    if not entries:
        raise DataError(f"{file}: `categories` is empty. List every class with `id` and `name`.")
    return tuple(sorted(entries, key=lambda entry: entry["id"]))


def resolve_classes(
    names: Sequence[str] | None, categories: Sequence[dict[str, Any]], listed: Sequence[dict[str, Any]] = ()
) -> tuple[tuple[LabelClass, ...], list[dict[str, Any]]]:
    """Classes to look for, with their ids, and the categories of the output.

    Args:
        names: Class names, each with synonyms behind it if wanted (``"tv|television|monitor"``). None: the names of
            ``listed``, else of ``categories``.
        categories: Those of the ground truth; their ids stay. Names that are not among them get ids of their own.
        listed: Categories of a file that only says what to look for; its ids are used where there is no ground truth.

    Raises:
        ConfigError: No class, an empty name, or two classes with the same words.
    """
    known = list(categories or listed)
    if names is None:
        names = [str(entry["name"]) for entry in listed or categories]
    if not names:
        raise ConfigError("no class to look for: give class names, or a COCO file with categories")
    id_of = {str(entry["name"]): int(entry["id"]) for entry in known}
    next_id = max(id_of.values(), default=0) + 1
    classes, owner = [], dict[str, str]()
    for text in names:
        # A category's name may hold a bar itself.
        name, *synonyms = [text] if text in id_of else [part.strip() for part in text.split("|")]
        if name not in id_of:
            id_of[name], next_id = next_id, next_id + 1
            known.append({"id": id_of[name], "name": name})
        wordings = tuple(dict.fromkeys(as_words(part) for part in (name, *synonyms)))
        for words in wordings:
            if not words:
                raise ConfigError(f"class {text!r} has no words to look for; give it a name with letters")
            if words in owner:
                raise ConfigError(f"classes {owner[words]!r} and {name!r} are both the words {words!r}")
            owner[words] = name
        classes.append(LabelClass(name, id_of[name], wordings))
    return tuple(classes), known


def as_words(name: str) -> str:
    """A class name as the detector reads it: lower case, without the marks that end a class in its prompt."""
    return " ".join(name.lower().translate(str.maketrans("._?", "   ")).split())


def _require_integers(entry: dict[str, Any], keys: tuple[str, ...], file: str, where: str) -> None:
    for key in keys:
        if not isinstance(entry[key], int):
            raise DataError(f"{file}: {where}: `{key}` is {entry[key]!r}, not an integer. Mend the file.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
