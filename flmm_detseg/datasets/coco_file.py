"""COCO files of any origin: one check of what readers, evaluation and labelling take from them.

Exporters differ (ids from 0, ids as texts, no ``area``, no ``iscrowd``, ``segmentation: []`` for a box), and native
code believes what it is given. Here every entry is checked and put into one form, and the entries are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flmm_detseg.datasets.files import load_json, require_keys, require_list
from flmm_detseg.datasets.masks import check_segmentation, decode_segmentation
from flmm_detseg.datasets.policy import ProblemLog, RecordError, as_record_error, record_error
from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import (
    FieldError,
    check_text,
    flag,
    identifier,
    integer,
    is_number,
    number,
    picture_size,
    shown,
)

Id = TypeVar("Id", bound=int | float | str)
REMEDY = "Mend the annotation, or use policy='skip' to leave what belongs to it out."


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One of ``images``.

    Attributes:
        image_id: As in the file.
        file_name: As in the file; empty where names are not asked for.
        size: ``(H, W)``.
        entry: All that the file says.
    """

    image_id: int | str
    file_name: str
    size: tuple[int, int]
    entry: dict[str, Any]

    @property
    def key(self) -> int | str:
        """The id in one form, see :func:`id_key`."""
        return id_key(self.image_id)


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One of ``annotations``.

    Attributes:
        ann_id: As in the file.
        image: What it is in.
        category_id: Of ``categories``.
        bbox: x, y, width, height in pixels, as in the file; finite.
        crowd: ``iscrowd``; False where the file has none.
        area: Pixels; None where the file has none.
        segmentation: Polygons (of one polygon too) or RLE, unchecked; None where there is none (``[]`` is none).
        entry: All that the file says.
    """

    ann_id: int | str
    image: CocoImage
    category_id: int
    bbox: tuple[float, float, float, float]
    crowd: bool
    area: float | None
    segmentation: Any
    entry: dict[str, Any]


def id_key(value: Id) -> int | Id:
    """An id in the form that ids are compared in: 42, 42.0 and "42" are one; "042" is a text."""
    if isinstance(value, str) and len(value) < 20 and value.removeprefix("-").isdecimal():
        return int(value) if str(int(value)) == value else value
    return value


def name_key(file_name: str) -> str:
    """A ``file_name`` in the form that names are compared in: ``./a/b.png`` and ``a\\b.png`` are ``a/b.png``."""
    parts: list[str] = []
    for part in file_name.replace("\\", "/").split("/"):
        if part == ".." and parts and parts[-1] not in ("", ".."):
            parts.pop()
        elif part not in (".", "") or (part == "" and not parts):
            parts.append(part)
    return "/".join(parts)


class CocoFile:
    """A COCO file and what was found wrong in it.

    Args:
        file: JSON with ``images``, ``annotations`` and ``categories``.
        what: Its role, for errors.
        log: Decides about faulty entries; None: the first one is an error.
        names: Images need a ``file_name``, each its own: the objects of a picture that is listed twice would be
            background in one of the two.

    Attributes:
        categories: Name by id, in the order of the file.
        category_entries: All that the file says about them.
        images: By :func:`id_key` of their ids; filled by :meth:`read_images`.
        faulty: Keys of images with a fault, so of images that no one should learn from.

    Raises:
        DataError: Missing, not JSON, of another kind, or (by ``log``) an entry is unusable.
    """

    def __init__(
        self, file: str | Path, what: str, log: ProblemLog | None = None, *, names: bool = True
    ) -> None:
        self.file, self._log, self._names = Path(file), log or ProblemLog("raise"), names
        self.content = load_json(self.file, what)
        require_keys(self.content, ("images", "annotations", "categories"), self.file)
        self.images: dict[int | str, CocoImage] = {}
        self.faulty: set[int | str] = set()
        self._listed: set[int | str] = set()
        self.category_entries = read_categories(self.content, self.file, self._log)
        self.categories = {entry["id"]: entry["name"] for entry in self.category_entries}

    def read_images(self, add: Callable[[CocoImage, str], None] | None = None) -> None:
        """Reads ``images``.

        Args:
            add: Takes an image and its place (``"image 7"``); raises what :meth:`problem` gives where it cannot use it.
        """
        by_name: dict[str, CocoImage] = {}

        def read(entry: Any, where: str) -> None:
            require_keys(entry, ("id",), self.file, where)
            image_id = identifier(entry["id"], "id")
            if (key := id_key(image_id)) in self._listed:
                if key in self.images and entry != self.images[key].entry:
                    self.faulty.add(key)  # annotations may mean either
                raise self.problem(where, f"image id {shown(image_id)} occurs twice", "duplicate id")
            self._listed.add(key)
            keys = ("file_name", "height", "width") if self._names else ("height", "width")
            require_keys(entry, keys, self.file, where)
            where = f"image {image_id}"
            name = check_text(entry["file_name"], "file_name", empty=False) if self._names else ""
            image = CocoImage(image_id, name, picture_size(entry["height"], entry["width"]), entry)
            if self._names:
                first = by_name.setdefault(name_key(name), image)
                if first is not image:
                    self.faulty.add(first.key)
                    raise self.problem(
                        where,
                        f"{name} is image {first.image_id} already: each of the two would teach the other's objects as "
                        "background",
                        "duplicate file",
                    )
            if add is not None:
                add(image, where)
            self.images[key] = image

        self._each("images", read)

    def read_objects(
        self, add: Callable[[CocoObject, str], None], wanted: Callable[[CocoImage, int], bool] | None = None
    ) -> None:
        """Reads ``annotations``; :meth:`read_images` comes first.

        Args:
            add: Takes an object and its place (``"annotation 7"``), likewise.
            wanted: Whether objects of an image and a category id are asked for; None: all are.
        """
        seen: set[int | str] = set()

        def read(entry: Any, where: str) -> None:
            require_keys(entry, ("id", "image_id", "category_id", "bbox"), self.file, where)
            ann_id, image_id = identifier(entry["id"], "id"), identifier(entry["image_id"], "image_id")
            where, key = f"annotation {ann_id}", id_key(image_id)
            if key not in self._listed:
                raise self.problem(where, f"image {shown(image_id)} is not in `images`", "unknown image")
            if id_key(ann_id) in seen:
                raise self.problem(where, "its id occurs twice", "duplicate id")
            seen.add(id_key(ann_id))
            if key not in self.images:  # left out, or a problem already
                return
            image = self.images[key]
            category_id = integer(entry["category_id"], "category_id", text=True)
            if category_id not in self.categories:
                message = f"category {shown(entry['category_id'])} is not in `categories`"
                raise self.problem(where, message, "unknown category")
            if wanted is None or wanted(image, category_id):
                add(self._object(entry, where, ann_id, image, category_id), where)

        self._each("annotations", read)

    def problem(self, record: str, message: str, kind: str) -> RecordError:
        """The error of one entry."""
        return record_error(str(self.file), record, message, REMEDY, kind)

    def _object(
        self, entry: dict[str, Any], where: str, ann_id: int | str, image: CocoImage, category_id: int
    ) -> CocoObject:
        bbox = entry["bbox"]
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
            message = f"`bbox` {shown(bbox)} is not [x, y, width, height]"
            raise self.problem(where, message, "bad box")
        area, crowd = entry.get("area"), entry.get("iscrowd")
        return CocoObject(
            ann_id,
            image,
            category_id,
            (float(bbox[0]), float(bbox[1]), float(bbox[2]), float(bbox[3])),
            False if crowd is None else flag(crowd, "iscrowd"),
            None if area is None else number(area, "area"),
            _segmentation(entry.get("segmentation")),
            entry,
        )

    def _each(self, key: str, read: Callable[[Any, str], None]) -> None:
        for position, entry in enumerate(require_list(self.content[key], key, self.file)):
            where = f"{key}[{position}]"
            try:
                read(entry, where)
            except Exception as error:
                if isinstance(entry, dict):
                    if key == "annotations":  # whatever the error, its image is incomplete now
                        self._taint(entry.get("image_id"))
                    if isinstance(entry.get("id"), (int, str)):
                        where = f"{key[:-1]} {shown(entry['id'])}"
                self._log.handle(as_record_error(error, str(self.file), where, REMEDY))

    def _taint(self, image_id: Any) -> None:
        with suppress(FieldError):
            self.faulty.add(id_key(identifier(image_id, "image_id")))


def _segmentation(value: Any) -> Any:
    """None for what is no mask; a polygon that is not in a list of polygons (supervision writes so) gets its list."""
    if isinstance(value, list) and value and all(map(is_number, value)):
        return [value]
    return value or None


def read_categories(content: Any, file: str | Path, log: ProblemLog | None = None) -> list[dict[str, Any]]:
    """``categories`` of a COCO file, with integer ids, each id and each name once.

    Roboflow lists the project as category 0, often under the name of its only class: of categories with one name those
    without an annotation are left out and counted, where another one has some.

    Args:
        content: What the file holds.
        file: The file, for errors.
        log: Decides about faulty entries; None: the first one is an error.

    Returns:
        Usable entries, as the file has them, in its order.

    Raises:
        DataError: There is none, or (by ``log``) one is unusable.
    """
    log = log or ProblemLog("raise")
    require_keys(content, ("categories",), file)
    found: list[dict[str, Any]] = []
    seen: set[int | str] = set()
    entries = require_list(content["categories"], "categories", file)
    empty = _empty_namesakes(entries, content.get("annotations"))
    for position, entry in enumerate(entries):
        where = f"categories[{position}]"
        if position in empty:
            log.drop("category without an object, another has its name", where)
            continue
        try:
            require_keys(entry, ("id", "name"), file, where)
            try:
                number, name = integer(entry["id"], "id"), check_text(entry["name"], "name", empty=False)
            except FieldError as error:
                message = f"`id` must be an integer and `name` a text ({error})"
                raise record_error(str(file), where, message, REMEDY, "malformed") from error
            if number in seen or name in seen:
                message = f"category {name!r} (id {number}) occurs twice"
                raise record_error(str(file), where, message, REMEDY, "duplicate id")
        except RecordError as error:
            log.handle(error)
        else:
            found.append({**entry, "id": number})
            seen.update((number, name))
    if not found:
        left = (
            f" but for faulty entries, first {log.problems[0].record}: {log.problems[0].message}"
            if log.problems
            else ""
        )
        raise DataError(f"{file}: `categories` is empty{left}. List every class with `id` and `name`.")
    return found


def _empty_namesakes(categories: list[Any], annotations: Any) -> set[int]:
    """Positions of categories that no annotation names, where one of the same name has annotations."""
    places: dict[str, list[int]] = {}
    for position, entry in enumerate(categories):
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("id"), int)
        ):
            places.setdefault(entry["name"], []).append(position)
    namesakes = [found for found in places.values() if len(found) > 1]
    if not namesakes or not isinstance(annotations, list):
        return set()
    ids = (entry.get("category_id") for entry in annotations if isinstance(entry, dict))
    used = {id_key(value) for value in ids if isinstance(value, int | float | str)}
    empty = set[int]()
    for found in namesakes:
        unused = {position for position in found if categories[position]["id"] not in used}
        empty |= unused if len(unused) < len(found) else set()
    return empty


def check_mask(segmentation: Any, size: tuple[int, int]) -> None:
    """Checks a segmentation as far as native code needs: polygons by their numbers, run lengths by decoding them.

    Args:
        segmentation: As in the file: polygons or RLE.
        size: ``(H, W)`` of the image.

    Raises:
        ValueError: It cannot be decoded; says why.
    """
    check_segmentation(segmentation, size)
    if not isinstance(segmentation, list):
        decode_segmentation(segmentation, size)
