"""The classes that are looked for, and the COCO ground truth that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_detseg.cache.regions.text_regions import TEXT
from flmm_detseg.datasets.coco_file import CocoFile, CocoImage, CocoObject, name_key
from flmm_detseg.datasets.coco_file import read_categories as coco_categories
from flmm_detseg.datasets.files import is_file, load_json
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.values import integer


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
        images: Its image entries by ``file_name``, in the form of :func:`~flmm_detseg.datasets.coco_file.name_key`.
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

    def check_names(self, folder: Path, names: Sequence[str]) -> None:
        """Compares the names with the images to label: a true box that finds no image would be lost.

        Args:
            folder: Of the images.
            names: Of the images to label, from the folder.

        Raises:
            DataError: No image of the file is in the folder, or one has another name there.
        """
        missing = [name for name in self.images if not is_file(folder / name)]
        by_ending: dict[str, str] = {}
        for name in names:
            if name not in self.images:
                by_ending[name.rsplit("/", 1)[-1]] = name
        for name in missing:
            if (other := by_ending.get(name.rsplit("/", 1)[-1])) is not None:
                raise DataError(
                    f"{self.file}: image {name} is not in {folder}, but {other} is, without annotations then. "
                    "Give the folder that `file_name` starts from, or mend the names."
                )
        if self.images and len(missing) == len(self.images):
            raise DataError(
                f"{self.file}: none of its {len(missing)} images is in {folder}, first {missing[0]}. Give the "
                "folder that `file_name` starts from."
            )


def read_ground_truth(file: str) -> GroundTruth:
    """Reads a COCO file, by the rules of :class:`~flmm_detseg.datasets.coco_file.CocoFile`, and with integer ids.

    Args:
        file: COCO JSON.

    Returns:
        Categories, images and annotations that can be used.

    Raises:
        DataError: Missing, truncated, of another kind, or an entry is unusable; names file and entry.
    """
    content = CocoFile(file, "ground truth (COCO)")
    images: dict[str, dict[str, Any]] = {}
    annotations: dict[int, list[dict[str, Any]]] = {}

    def add_image(image: CocoImage, where: str) -> None:
        for key in ("id", "height", "width"):
            integer(image.entry[key], key)
        images[name_key(image.file_name)] = image.entry

    def add_annotation(item: CocoObject, where: str) -> None:
        for key in ("id", "image_id", "category_id"):
            integer(item.entry[key], key)
        annotations.setdefault(item.image.entry["id"], []).append(item.entry)

    content.read_images(add_image)
    content.read_objects(add_annotation)
    categories = tuple(sorted(content.category_entries, key=lambda entry: entry["id"]))
    licenses = content.content.get("licenses")
    return GroundTruth(Path(file), categories, images, annotations, licenses or [])


def read_categories(file: str) -> tuple[dict[str, Any], ...]:
    """Categories of a COCO file, in the order of their ids.

    Args:
        file: COCO JSON.

    Returns:
        The entries, with integer ids.

    Raises:
        DataError: Missing, or the categories are unusable.
    """
    entries = coco_categories(load_json(file, "COCO file with categories"), file)
    return tuple(sorted(entries, key=lambda entry: entry["id"]))


def resolve_classes(
    names: Sequence[str] | None, categories: Sequence[dict[str, Any]], listed: Sequence[dict[str, Any]] = ()
) -> tuple[tuple[LabelClass, ...], list[dict[str, Any]]]:
    """Classes to look for, with their ids, and the categories of the output.

    Args:
        names: Class names, each followed by synonyms if wanted (``"tv|television|monitor"``). None: the names of
            ``listed``, else of ``categories``.
        categories: Those of the ground truth; their ids stay. Names that are not among them get ids of their own.
        listed: Categories of a file that only says what to look for; its ids are used where there is no ground truth.

    Returns:
        What to look for, in order; and COCO categories, those of the ground truth first.

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


def with_texts(
    classes: Sequence[LabelClass], categories: Sequence[dict[str, Any]]
) -> tuple[tuple[LabelClass, ...], list[dict[str, Any]]]:
    """Adds the class of texts, which no detector is asked for.

    Args:
        classes: What a detector looks for; one named :data:`~flmm_detseg.cache.regions.text_regions.TEXT` (of a ground
            truth) is taken over.
        categories: Of the output.

    Returns:
        The classes, that of texts last, and the categories with it; its id is the one it has there, or a new one.
    """
    ids = {str(entry["name"]): int(entry["id"]) for entry in categories}
    known = list(categories)
    if TEXT not in ids:
        ids[TEXT] = max(ids.values(), default=0) + 1
        known.append({"id": ids[TEXT], "name": TEXT})
    others = [entry for entry in classes if entry.name != TEXT]
    return (*others, LabelClass(TEXT, ids[TEXT], (TEXT,))), known


def as_words(name: str) -> str:
    """A class name as the detector reads it: lower case, without the marks that end a class in its prompt."""
    return " ".join(name.lower().translate(str.maketrans("._?", "   ")).split())
