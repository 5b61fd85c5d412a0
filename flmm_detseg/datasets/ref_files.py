"""What the files of RefCOCO and its relatives have in common: images and annotations by id, and sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import list_of, load_json, require_keys
from flmm_detseg.utils.values import (
    FieldError,
    check_text,
    check_words,
    identifier,
    integer,
    picture_size,
    shown,
)

# GroundingDataset._read_entries: file, name of the list, the list, what takes an entry and its place.
ReadEntries = Callable[[Path, str, Any, Callable[[Any, str], None]], None]


@dataclass(frozen=True, slots=True)
class RefImage:
    """One of ``images``: its id, its name in the file, its path, and ``(H, W)``."""

    image_id: int | str
    name: str
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RefSentence:
    """A sentence and its id."""

    text: str
    sentence_id: int


def read_instances(
    read_entries: ReadEntries, file: Path, image_dir: Path
) -> tuple[dict[int | str, RefImage], dict[int | str, dict[str, Any]]]:
    """Images and annotations of an instances file by id.

    Args:
        read_entries: Decides about faulty entries.
        file: ``instances.json``.
        image_dir: Folder that names start from.

    Returns:
        Images, of which it is not known whether they are there; and annotations as the file has them.

    Raises:
        DataError: It is missing, no complete JSON, of another kind, or (by ``read_entries``) an entry is unusable.
    """
    content = load_json(file, "instances file")
    require_keys(content, ("images", "annotations"), file)
    images: dict[int | str, RefImage] = {}
    annotations: dict[int | str, dict[str, Any]] = {}

    def add_image(entry: Any, record: str) -> None:
        require_keys(entry, ("id", "file_name", "height", "width"), file, record)
        image_id, name = identifier(entry["id"], "id"), check_text(entry["file_name"], "file_name")
        size = picture_size(entry["height"], entry["width"])
        images[image_id] = RefImage(image_id, name, image_dir / name, size)

    def add_annotation(entry: Any, record: str) -> None:
        require_keys(entry, ("id",), file, record)
        annotations[identifier(entry["id"], "id")] = entry

    read_entries(file, "images", content["images"], add_image)
    read_entries(file, "annotations", content["annotations"], add_annotation)
    return images, annotations


def read_sentences(entries: Any, lower: bool) -> tuple[RefSentence, ...]:
    """The sentences of a reference: the words as they were written (``raw``); where those are missing, ``sent``.

    Args:
        entries: As in the file.
        lower: Lower-case them.

    Returns:
        At least one.

    Raises:
        FieldError: Not a list of objects, none, or an empty one.
    """
    found = []
    for position, entry in enumerate(list_of(entries, "sentences")):
        if not isinstance(entry, dict):
            raise FieldError(f"`sentences[{position}]` is {shown(entry)}, not an object")
        key = next((key for key in ("raw", "sent") if entry.get(key) is not None), None)
        text = "" if key is None else check_text(entry[key], key).strip()
        number = integer(entry.get("sent_id", position), "sent_id", text=True)
        found.append(RefSentence(check_words(text.lower() if lower else text, "sentences"), number))
    if not found or not all(sentence.text for sentence in found):
        raise FieldError("it has no sentence, or an empty one", "empty sentence")
    return tuple(found)
