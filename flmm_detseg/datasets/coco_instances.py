"""COCO instance annotations (also a user's own, see docs/own_data.md) as samples of object detection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import load_json, require_dir, require_keys
from flmm_detseg.datasets.image_ids import excluded_ids
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.masks import check_segmentation, decode_segmentation
from flmm_detseg.datasets.policy import RecordError, record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import DenseTargets, Sample
from flmm_detseg.utils.names import suggest


@dataclass(slots=True)
class _Record:
    """One image; its objects are added while the annotations are read."""

    record_id: str
    image_id: Any
    path: Path
    size: tuple[int, int]  # (H, W)
    ann_ids: list[Any] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    segmentations: list[Any] = field(default_factory=list)


@DATASETS.register_module()
class COCOInstancesDataset(GroundingDataset):
    """Boxes (and masks) of the objects in an image, in COCO's instance format.

    Samples have ``task="detection"``, an empty text, ``dense`` with boxes, labels, crowd flags and, if asked for,
    masks; ``meta["coco_image_id"]`` and ``meta["ann_ids"]`` are as in the file. Boxes are cut to the image;
    those of no width or height are left out and counted (``dropped["degenerate box"]``). The ``score`` of
    annotations with ``pseudo: true`` (tools/pseudo_label.py) becomes ``dense.weights``; others weigh 1.

    Args:
        ann_file: COCO JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder that ``file_name`` starts from.
        classes: Category names; their order gives the labels, annotations of other categories are not used.
            None: all categories, in the order of their ids.
        with_masks: Decode polygons and RLE; False reads boxes only (and needs no ``segmentation``).
        keep_empty: Keep images without any object (background to learn from, and false positives to count); False
            drops them (``dropped["no object"]``).
        policy: ``"raise"`` | ``"skip"``. An image with a faulty annotation is skipped as a whole: an object that
            is left out would be learned as background.
        verify_images: Decode every image and mask at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.
        exclude_image_ids_file: One file or several with ids of images that must not come up
            (``dropped["excluded image"]``), see :func:`~flmm_detseg.datasets.image_ids.read_image_ids`: with
            ``refs(unc).p``, the images that referring expressions are evaluated on.

    Attributes:
        classes: Category names by label.
        category_ids: Category ids of the file by label, for evaluation.

    Raises:
        DataError: The file is missing, truncated or of another kind, or (``policy="raise"``) an annotation is
            unusable.
        ConfigError: ``classes`` names a category that the file does not have.

    Source: Lin et al., Microsoft COCO, ECCV 2014 (arXiv 1405.0312).
    """

    def __init__(
        self,
        ann_file: str,
        image_dir: str,
        classes: Sequence[str] | None = None,
        with_masks: bool = False,
        keep_empty: bool = True,
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "coco",
        exclude_image_ids_file: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(policy)
        self.ann_file = Path(ann_file)
        self.annotation_files = (self.ann_file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.with_masks, self.name = with_masks, name
        content = load_json(self.ann_file, "COCO annotation file")
        require_keys(content, ("images", "annotations", "categories"), self.ann_file)
        self._known_categories: set[Any] = set()
        self._label_of: dict[Any, int] = {}
        self._has_pseudo = False
        self.classes, self.category_ids = self._read_categories(content["categories"], classes)
        self.records = self._read_records(content, keep_empty, excluded_ids(exclude_image_ids_file))
        self._finish(verify_images, str(self.ann_file))

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names and category ids by label, beside the counts."""
        return {**super().metainfo, "classes": self.classes, "category_ids": self.category_ids}

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; it has no phrases."""
        return str(self.records[index].path), []

    def report(self) -> dict[str, Any]:
        """Counts of what is used, skipped and dropped, and of objects by class."""
        counts = np.zeros(len(self.classes), dtype=int)
        for record in self.records:
            np.add.at(counts, record.labels, 1)
        objects = dict(zip(self.classes, counts.tolist()))
        return {**super().report(), "objects": sum(objects.values()), "objects_by_class": objects}

    def _problem(self, record: str, message: str, kind: str) -> RecordError:
        remedy = "Mend the annotation, or use policy='skip' to leave such images out."
        return record_error(str(self.ann_file), record, message, remedy, kind)

    def _read_categories(
        self, entries: Any, wanted: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        id_of: dict[str, Any] = {}

        def add(entry: Any, record: str) -> None:
            require_keys(entry, ("id", "name"), self.ann_file, record)
            if not isinstance(entry["id"], int) or not isinstance(entry["name"], str):
                raise self._problem(record, "`id` must be an integer and `name` a text", "malformed")
            if entry["name"] in id_of or entry["id"] in self._known_categories:
                message = f"category {entry['name']!r} (id {entry['id']}) occurs twice"
                raise self._problem(record, message, "duplicate id")
            id_of[entry["name"]] = entry["id"]
            self._known_categories.add(entry["id"])

        self._read_entries(self.ann_file, "categories", entries, add)
        if not id_of:
            raise DataError(f"{self.ann_file}: `categories` is empty. List every class with `id` and `name`.")
        names = sorted(id_of, key=lambda name: id_of[name]) if wanted is None else list(wanted)
        for number, name in enumerate(names):
            if name not in id_of:
                raise ConfigError(
                    f"`classes` names {name!r}, no category of {self.ann_file}{suggest(str(name), id_of)}"
                )
            if name in names[:number]:
                raise ConfigError(f"`classes` names {name!r} twice")
        ids = tuple(id_of[name] for name in names)
        self._label_of = {category_id: label for label, category_id in enumerate(ids)}
        return tuple(names), ids

    def _read_records(
        self, content: dict[str, Any], keep_empty: bool, excluded: frozenset[int]
    ) -> list[_Record]:
        records: dict[Any, _Record] = {}
        listed: set[Any] = set()
        faulty: set[Any] = set()
        seen: set[Any] = set()

        def add_image(entry: Any, where: str) -> None:
            require_keys(entry, ("id",), self.ann_file, where)
            if entry["id"] in listed:
                raise self._problem(where, f"image id {entry['id']} occurs twice", "duplicate id")
            listed.add(entry["id"])
            if entry["id"] in excluded:
                self._log.drop("excluded image", f"{self.name}/image-{entry['id']}")
                return
            records[entry["id"]] = self._read_image(entry, where)

        def add_annotation(entry: Any, where: str) -> None:
            try:
                require_keys(entry, ("id", "image_id", "category_id", "bbox"), self.ann_file, where)
                where = f"annotation {entry['id']}"
                if entry["image_id"] not in listed:
                    raise self._problem(
                        where, f"image {entry['image_id']} is not in `images`", "unknown image"
                    )
                if entry["id"] in seen:
                    raise self._problem(where, "its id occurs twice", "duplicate id")
                seen.add(entry["id"])
                if entry["image_id"] in records:  # otherwise its image is excluded, or a problem already
                    self._read_annotation(entry, where, records[entry["image_id"]])
            except (RecordError, TypeError, ValueError):
                if isinstance(entry, dict) and isinstance(entry.get("image_id"), (int, str)):
                    faulty.add(entry["image_id"])
                raise

        self._read_entries(self.ann_file, "images", content["images"], add_image)
        self._read_entries(self.ann_file, "annotations", content["annotations"], add_annotation)
        usable = []
        for record in records.values():
            if record.image_id in faulty:
                continue
            if keep_empty or record.labels:
                usable.append(record)
            else:
                self._log.drop("no object", record.record_id)
        return usable

    def _read_image(self, entry: Any, where: str) -> _Record:
        require_keys(entry, ("id", "file_name", "height", "width"), self.ann_file, where)
        path, size = self.image_dir / entry["file_name"], (int(entry["height"]), int(entry["width"]))
        if not path.is_file():
            raise self._problem(f"image {entry['id']}", f"{path} not found", "missing image")
        if min(size) < 1:
            raise self._problem(f"image {entry['id']}", f"its size {size} (H, W) is empty", "size mismatch")
        return _Record(f"{self.name}/image-{entry['id']}", entry["id"], path, size)

    def _read_annotation(self, entry: dict[str, Any], where: str, record: _Record) -> None:
        if entry["category_id"] not in self._known_categories:
            message = f"category {entry['category_id']} is not in `categories`"
            raise self._problem(where, message, "unknown category")
        if entry["category_id"] not in self._label_of:
            return
        bbox = entry["bbox"]
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
            raise self._problem(where, f"`bbox` {bbox} is not [x, y, width, height]", "bad box")
        height, width = record.size
        x0, y0 = max(0.0, bbox[0]), max(0.0, bbox[1])
        x1, y1 = min(float(width), bbox[0] + bbox[2]), min(float(height), bbox[1] + bbox[3])
        if x1 <= x0 or y1 <= y0:
            self._log.drop("degenerate box", where)
            return
        weight = 1.0
        if entry.get("pseudo"):
            self._has_pseudo = True
            weight = entry.get("score")
            if not (_is_number(weight) and 0 < weight <= 1):
                message = f"`score` {weight} of a pseudo-label is not a number over 0 and up to 1"
                raise self._problem(where, message, "bad score")
        if self.with_masks:
            try:
                check_segmentation(entry.get("segmentation"), record.size)
            except (TypeError, ValueError) as error:
                raise self._problem(where, f"mask: {error}", "bad mask") from error
            record.segmentations.append(entry["segmentation"])
        record.weights.append(float(weight))
        record.ann_ids.append(entry["id"])
        record.boxes.append((x0, y0, x1, y1))
        record.labels.append(self._label_of[entry["category_id"]])
        record.crowd.append(bool(entry.get("iscrowd", 0)))

    def _read(self, record: _Record) -> Sample:
        image = self._load_image(record.path, record.record_id)
        check_image_size(image, record.size, record.path, record.record_id)
        dense = DenseTargets(
            boxes_xyxy=np.asarray(record.boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.asarray(record.labels, dtype=np.int64),
            masks=self._decode_masks(record) if self.with_masks else None,
            crowd=np.asarray(record.crowd, dtype=bool),
            weights=np.asarray(record.weights, dtype=np.float32) if self._has_pseudo else None,
        )
        return Sample(
            record_id=record.record_id,
            image=image,
            text="",
            phrases=(),
            image_id=str(record.path),
            task="detection",
            dense=dense,
            meta={"coco_image_id": record.image_id, "ann_ids": list(record.ann_ids)},
        )

    def _decode_masks(self, record: _Record) -> np.ndarray:
        masks = np.zeros((len(record.labels), *record.size), dtype=bool)
        faults = []
        for number, segmentation in enumerate(record.segmentations):
            try:
                masks[number] = decode_segmentation(segmentation, record.size)
                if not masks[number].any():
                    raise ValueError("it is empty")
            except ValueError as error:
                faults.append(f"annotation {record.ann_ids[number]}: {error}")
        if faults:
            message = f"masks cannot be decoded ({'; '.join(faults)})"
            raise self._problem(record.record_id, message, "bad mask")
        return masks


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
