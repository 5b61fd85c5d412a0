"""COCO instance annotations (also a user's own, see docs/own_data.md) as samples of object detection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.coco_file import CocoFile, CocoImage, CocoObject, name_key
from flmm_detseg.datasets.files import existing_file, is_file, list_of, require_dir
from flmm_detseg.datasets.image_ids import ImageIds, read_images
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.masks import check_segmentation, decode_segmentation
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import DenseTargets, Sample
from flmm_detseg.utils.names import suggest
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, integer, is_number, shown

# Boxes of float32 tools leave the image by less than that.
_ROUNDING = 1e-2


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
    cut: list[bool] = field(default_factory=list)
    corners: list[bool] = field(default_factory=list)
    absent: tuple[int, ...] | None = None  # labels that the file says are not there; None: it does not say


@DATASETS.register_module()
class COCOInstancesDataset(GroundingDataset):
    """Boxes (and masks) of the objects in an image, in COCO's instance format.

    Samples have ``task="detection"``, an empty text, ``dense`` with boxes, labels, crowd flags and, if asked for,
    masks; ``meta["coco_image_id"]`` and ``meta["ann_ids"]`` are as in the file. Boxes are cut to the image (and
    counted, see :meth:`count`); those of no width or height are left out (``dropped["degenerate box"]``). What files
    of other makers may be like, see :class:`~flmm_detseg.datasets.coco_file.CocoFile`. The ``score`` of annotations
    with ``pseudo: true`` (tools/pseudo_label.py) becomes ``dense.weights``; others weigh 1. Of files that do not list
    every object (LVIS, PACO) ``meta["absent_labels"]`` are the classes that are known not to be there
    (``neg_category_ids``).

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
            (``dropped["excluded image"]``), see :func:`~flmm_detseg.datasets.image_ids.read_images`: with
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
        self.ann_file = find(ann_file)
        self.annotation_files = (self.ann_file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.with_masks, self.name = with_masks, name
        file = CocoFile(self.ann_file, "COCO annotation file", self._log)
        self._has_pseudo = False
        self.classes, self.category_ids = self._choose_classes(file, classes)
        self.records = self._read_records(file, keep_empty, read_images(exclude_image_ids_file))
        self._finish(verify_images, str(self.ann_file))

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names and category ids by label, beside the counts."""
        return {**super().metainfo, "classes": self.classes, "category_ids": self.category_ids}

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; it has no phrases."""
        return str(self.records[index].path), []

    def labels_of(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Labels of a record's objects, and labels that its file says are not there (None: it does not say)."""
        record: _Record = self.records[index]
        return tuple(record.labels), record.absent

    def count(self, indices: Iterable[int] | None = None) -> dict[str, Any]:
        """Objects that are learned, by class, crowds (neither learned nor counted) and boxes cut at the frame."""
        counts = np.zeros(len(self.classes), dtype=int)
        crowds = cut = 0
        for record in self.records if indices is None else [self.records[index] for index in indices]:
            crowd = np.asarray(record.crowd, dtype=bool)
            np.add.at(counts, np.asarray(record.labels, dtype=int)[~crowd], 1)
            crowds, cut = crowds + int(crowd.sum()), cut + sum(record.cut)
        objects = dict(zip(self.classes, counts.tolist()))
        return {
            "objects": sum(objects.values()),
            "crowds": crowds,
            "cut_at_the_frame": cut,
            "objects_by_class": objects,
            "classes_without_objects": [name for name, number in objects.items() if not number],
        }

    def has_corners(self, indices: Iterable[int]) -> bool:
        """Whether ``bbox`` may be two corners: half of the boxes leave the image, and as corners all are inside."""
        records = [self.records[index] for index in indices]
        cut = [value for record in records for value in record.cut]
        return len(cut) >= 3 and sum(cut) >= len(cut) / 2 and all(all(record.corners) for record in records)

    def _choose_classes(
        self, file: CocoFile, wanted: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        id_of = {name: category_id for category_id, name in file.categories.items()}
        names = sorted(id_of, key=lambda name: id_of[name]) if wanted is None else list(wanted)
        for number, name in enumerate(names):
            if name not in id_of:
                raise ConfigError(
                    f"`classes` names {name!r}, no category of {self.ann_file}{suggest(str(name), id_of)}"
                )
            if name in names[:number]:
                raise ConfigError(f"`classes` names {name!r} twice")
        return tuple(names), tuple(id_of[name] for name in names)

    def _read_records(self, file: CocoFile, keep_empty: bool, excluded: ImageIds) -> list[_Record]:
        records: dict[int | str, _Record] = {}
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}

        def add_image(image: CocoImage, where: str) -> None:
            record_id = f"{self.name}/image-{image.image_id}"
            if excluded.holds(image.image_id, image.file_name):
                self._log.drop("excluded image", record_id)
                return
            path = self._image_path(file, image, where)
            record = _Record(record_id, image.image_id, path, image.size)
            if (absent := image.entry.get("neg_category_ids")) is not None:
                ids = [integer(value, "neg_category_ids") for value in list_of(absent, "neg_category_ids")]
                record.absent = tuple(label_of[value] for value in ids if value in label_of)
            records[image.key] = record

        def add_object(item: CocoObject, where: str) -> None:
            self._add_object(file, item, where, records[item.image.key], label_of[item.category_id])

        file.read_images(add_image)
        file.read_objects(add_object, lambda image, category: image.key in records and category in label_of)
        usable = []
        for key, record in records.items():
            if key in file.faulty:
                continue
            if keep_empty or record.labels:
                usable.append(record)
            else:
                self._log.drop("no object", record.record_id)
        return usable

    def _image_path(self, file: CocoFile, image: CocoImage, where: str) -> Path:
        try:
            return existing_file(self.image_dir, image.file_name, "file_name")
        except FieldError as error:
            # Tools on Windows write their own separator; the part of the name that is a folder may be missing here.
            plain = name_key(image.file_name)
            if plain != image.file_name and is_file(self.image_dir / plain):
                return self.image_dir / plain
            hint = ""
            for ending in _endings(plain):
                if is_file(self.image_dir / ending):
                    hint = f" ({ending} is there: give the folder that `file_name` starts from)"
                    break
            raise file.problem(where, f"{error}{hint}", error.kind) from error

    def _add_object(self, file: CocoFile, item: CocoObject, where: str, record: _Record, label: int) -> None:
        height, width = record.size
        x, y, w, h = item.bbox
        x0, y0 = max(0.0, x), max(0.0, y)
        x1, y1 = min(float(width), x + w), min(float(height), y + h)
        if x1 <= x0 or y1 <= y0:
            self._log.drop("degenerate box", where)
            return
        weight: Any = 1.0
        if item.entry.get("pseudo"):
            self._has_pseudo = True
            weight = item.entry.get("score")
            if not (is_number(weight) and 0 < weight <= 1):
                message = f"`score` {shown(weight)} of a pseudo-label is not a number over 0 and up to 1"
                raise file.problem(where, message, "bad score")
        if self.with_masks:
            try:
                check_segmentation(item.segmentation, record.size)
            except (TypeError, ValueError) as error:
                raise file.problem(where, f"mask: {error}", "bad mask") from error
            record.segmentations.append(item.segmentation)
        record.weights.append(float(weight))
        record.ann_ids.append(item.ann_id)
        record.boxes.append((x0, y0, x1, y1))
        record.labels.append(label)
        record.crowd.append(item.crowd)
        record.cut.append(max(-x, -y, x + w - width, y + h - height) > _ROUNDING)
        record.corners.append(0 <= x < w <= width + _ROUNDING and 0 <= y < h <= height + _ROUNDING)

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
            meta={
                "coco_image_id": record.image_id,
                "ann_ids": list(record.ann_ids),
                **({} if record.absent is None else {"absent_labels": list(record.absent)}),
            },
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
            remedy = "Mend the annotation, or use policy='skip' to leave such images out."
            raise record_error(str(self.ann_file), record.record_id, message, remedy, "bad mask")
        return masks


def _endings(name: str) -> Iterator[str]:
    """``b/c.png`` and ``c.png`` of ``a/b/c.png``."""
    parts = name.split("/")
    for start in range(1, len(parts)):
        yield "/".join(parts[start:])
