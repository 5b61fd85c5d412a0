"""Label maps as samples of semantic segmentation: one picture of class numbers per image (ADE20K's form)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.class_names import named_classes
from flmm_detseg.datasets.files import IMAGE_SUFFIXES, image_beside, is_file, require_dir
from flmm_detseg.datasets.images import read_labels
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import DenseTargets, Sample
from flmm_detseg.utils.values import printable

IGNORE = 255
# Pillow modes whose pixels are class numbers: a colour picture is not a label map.
_LABEL_MODES = frozenset(("1", "L", "P", "I", "I;16", "I;16B"))


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    label_path: Path
    image_path: Path


@DATASETS.register_module()
class SemanticMapsDataset(GroundingDataset):
    """A folder of label maps and a folder of images with the same names.

    Samples have ``task="segmentation"``, an empty text and ``dense.semantic``: uint8 ``[H, W]``, index into
    ``classes``, 255 where unknown.

    Args:
        label_dir: Folder of the label maps (sub-folders too); class numbers as pixel values, 255 is unknown.
        image_dir: Folder of the images: same name, any image suffix.
        classes: Class names by index, or the name of a list: ``"ade20k"`` and others of mmseg, ``"tinyworld"``, or a
            file of names (:func:`~flmm_detseg.datasets.class_names.named_classes`).
        reduce_zero_label: Value 0 is unknown and class i has the value i + 1 (ADE20K, TinyWorld).
        label_suffix: End of the label maps' names, cut off to find the image.
        policy: ``"raise"`` | ``"skip"`` for label maps that cannot be used.
        verify_images: Decode every image and map at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.

    Attributes:
        classes: Class names by index.

    Raises:
        DataError: A folder is missing or has no label map, or (``policy="raise"``) a map is unusable.
        ConfigError: The classes are not known, or too many for 8 bits.

    Source: Zhou et al., ADE20K / SceneParse150, CVPR 2017 (arXiv 1608.05442).
    """

    def __init__(
        self,
        label_dir: str,
        image_dir: str,
        classes: Sequence[str] | str,
        reduce_zero_label: bool = False,
        label_suffix: str = ".png",
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "semantic",
    ) -> None:
        super().__init__(policy)
        self.label_dir = require_dir(label_dir, "label map folder")
        self.image_dir = require_dir(image_dir, "image folder")
        self.classes = semantic_classes(classes)
        self.reduce_zero_label, self.name = reduce_zero_label, name
        self.records = self._find_records(label_suffix)
        self._finish(verify_images, str(self.label_dir))

    @property
    def annotation_files(self) -> tuple[Path, ...]:  # type: ignore[override]  # not to be set from outside
        """The label maps in use."""
        return tuple(record.label_path for record in self.records)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names by index, beside the counts."""
        return {**super().metainfo, "semantic_classes": self.classes}

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; it has no phrases."""
        return str(self.records[index].image_path), []

    def _find_records(self, label_suffix: str) -> list[_Record]:
        records = []
        paths = sorted(path for path in self.label_dir.rglob(f"*{label_suffix}") if is_file(path))
        if not paths:
            raise DataError(
                f"{self.label_dir}: no label map *{label_suffix} in it. Check `label_dir` and `label_suffix`."
            )
        for path in paths:
            stem = path.relative_to(self.label_dir).as_posix().removesuffix(label_suffix)
            image_path = image_beside(self.image_dir, stem)
            if image_path is None:
                message = (
                    f"no image {stem}.jpg (or {', '.join(IMAGE_SUFFIXES[1:3])}, ...) in {self.image_dir}"
                )
                remedy = "Images and label maps need equal names; policy='skip' leaves such maps out."
                self._log.handle(record_error(str(path), "", message, remedy, "missing image"))
            else:
                records.append(_Record(printable(f"{self.name}/{stem}"), path, image_path))
        return records

    def _read(self, record: _Record) -> Sample:
        image = self._load_image(record.image_path, record.record_id)
        return Sample(
            record_id=record.record_id,
            image=image,
            text="",
            phrases=(),
            image_id=str(record.image_path),
            task="segmentation",
            dense=DenseTargets(semantic=self._read_map(record, image.shape[:2])),
            meta={"label_map": str(record.label_path)},
        )

    def _read_map(self, record: _Record, image_size: tuple[int, int]) -> np.ndarray:
        """uint8 ``[H, W]``; raises :class:`~flmm_detseg.datasets.policy.RecordError` where it is unusable."""

        def problem(message: str, kind: str, remedy: str) -> Exception:
            return record_error(str(record.label_path), record.record_id, message, remedy, kind)

        size = (image_size[0], image_size[1])
        _, values, _ = read_labels(record.label_path, record.record_id, "label map", _LABEL_MODES, size)
        values = values.astype(np.int64)
        known = values != IGNORE
        if self.reduce_zero_label:
            known &= values != 0
            values = values - 1
        wrong = np.unique(values[known & ((values < 0) | (values >= len(self.classes)))])
        if wrong.size:
            found = ", ".join(str(int(value) + self.reduce_zero_label) for value in wrong[:5])
            numbers = f"{int(self.reduce_zero_label)}..{len(self.classes) - 1 + self.reduce_zero_label}"
            message = f"label map has the values {found}; {len(self.classes)} classes have {numbers}"
            raise problem(message, "bad map", "Check `classes` and `reduce_zero_label`; 255 is unknown.")
        return np.where(known, values, IGNORE).astype(np.uint8)


def semantic_classes(classes: Sequence[str] | str) -> tuple[str, ...]:
    """Class names of a list, or of the name of one (:func:`~flmm_detseg.datasets.class_names.named_classes`).

    Args:
        classes: Names in the order of the labels, or a well-known list's name.

    Returns:
        The names, in the order of the labels.

    Raises:
        ConfigError: Unknown, empty, repeated, or more than label maps of 8 bits can hold.
    """
    names = named_classes(classes)
    if not 0 < len(names) < IGNORE or len(set(names)) != len(names):
        raise ConfigError(f"`classes` has {len(names)} names; 1 to 254 different ones are needed")
    return names
