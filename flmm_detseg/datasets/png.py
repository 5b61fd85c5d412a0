"""Panoptic Narrative Grounding: captions whose phrases are segments of COCO's panoptic annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import (
    existing_file,
    list_of,
    load_json,
    require_dir,
    require_keys,
    require_list,
    words_argument,
)
from flmm_detseg.datasets.image_ids import ImageIds, read_images
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.masks import read_panoptic_ids
from flmm_detseg.datasets.policy import RecordError, record_error
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text, check_words, flag, integer, picture_size, shown


@dataclass(frozen=True, slots=True)
class _Panoptic:
    """One image of the panoptic annotation."""

    image_name: str
    image_path: Path
    map_name: str
    map_path: Path
    size: tuple[int, int]  # (H, W)
    is_thing: dict[int, bool]  # by segment id


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    panoptic: _Panoptic
    text: str
    phrases: tuple[Phrase, ...]
    segment_ids: tuple[tuple[int, ...], ...]


@DATASETS.register_module()
class PNGDataset(GroundingDataset):
    """Narratives with grounded phrases, things and stuff, singular and plural.

    The text is the utterances joined by single spaces; an utterance with segment ids is a phrase, and its
    mask is the union of its segments. Narratives without any grounded phrase are left out and counted in
    :attr:`dropped`.

    Args:
        narratives_file: ``png_coco_{train,val}2017.json``: a list of ``{"image_id", "caption", "segments":
            [{"utterance", "segment_ids", "plural", "noun"}]}``.
        panoptic_json: ``panoptic_{train,val}2017.json`` of COCO.
        panoptic_dir: Folder of the panoptic PNG files.
        image_dir: Folder of the images.
        plural_is_thing: Count every plural phrase as a thing, as the published protocol does; False: by the
            category of its first segment.
        policy: ``"raise"`` | ``"skip"`` for narratives that cannot be used (the narrative is the unit
            skipped). A faulty entry of the panoptic annotation is listed too, and with it go the narratives of
            its image.
        prompt: The user's question of every sample; None: the LMM adapter's default.
        verify_images: Decode every image and panoptic map at construction, so that ``policy="skip"`` covers
            them too.
        name: First part of record ids.
        exclude_image_ids_file: One file or several with ids of images that must not come up
            (``dropped["excluded image"]``), see :func:`~flmm_detseg.datasets.image_ids.read_images`.

    Raises:
        DataError: A file is missing, truncated or of another kind, or (``policy="raise"``) a narrative is
            unusable.
        ConfigError: ``prompt`` cannot be used.

    Source: González et al., Panoptic Narrative Grounding, ICCV 2021 (arXiv 2109.04988).
    """

    def __init__(
        self,
        narratives_file: str,
        panoptic_json: str,
        panoptic_dir: str,
        image_dir: str,
        plural_is_thing: bool = True,
        policy: str = "raise",
        prompt: str | None = None,
        verify_images: bool = False,
        name: str = "png",
        exclude_image_ids_file: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(policy)
        self.narratives_file, self.panoptic_json = find(narratives_file), find(panoptic_json)
        self.annotation_files = (self.narratives_file, self.panoptic_json)
        self.panoptic_dir = require_dir(panoptic_dir, "panoptic folder")
        self.image_dir = require_dir(image_dir, "image folder")
        self.plural_is_thing, self.name = plural_is_thing, name
        self.prompt = words_argument(prompt, "prompt")
        self.records = self._read_records(read_images(exclude_image_ids_file))
        self._finish(verify_images, str(self.narratives_file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrase texts of a record, without reading its image."""
        record = self.records[index]
        texts = [" ".join(record.text[start:end] for start, end in phrase.spans) for phrase in record.phrases]
        return str(record.panoptic.image_path), texts

    def _read_panoptic(self) -> dict[int, _Panoptic]:
        content = load_json(self.panoptic_json, "panoptic annotation")
        require_keys(content, ("images", "annotations", "categories"), self.panoptic_json)
        is_thing: dict[int, bool] = {}
        images: dict[int, tuple[str, tuple[int, int]]] = {}
        result: dict[int, _Panoptic] = {}

        def add_category(category: Any, record: str) -> None:
            require_keys(category, ("id", "isthing"), self.panoptic_json, record)
            is_thing[_id(category["id"], "id")] = flag(category["isthing"], "isthing")

        def add_image(image: Any, record: str) -> None:
            require_keys(image, ("id", "file_name", "height", "width"), self.panoptic_json, record)
            name, size = (
                check_text(image["file_name"], "file_name"),
                picture_size(image["height"], image["width"]),
            )
            images[_id(image["id"], "id")] = (name, size)

        def add_annotation(entry: Any, record: str) -> None:
            require_keys(entry, ("image_id", "file_name", "segments_info"), self.panoptic_json, record)
            image_id, map_name = (
                _id(entry["image_id"], "image_id"),
                check_text(entry["file_name"], "file_name"),
            )
            if image_id not in images:
                raise FieldError(f"image {image_id} is not in `images`")
            segments = {}
            for number, info in enumerate(list_of(entry["segments_info"], "segments_info")):
                where = f"{record} segments_info[{number}]"
                require_keys(info, ("id", "category_id"), self.panoptic_json, where)
                category = _id(info["category_id"], "category_id")
                if category not in is_thing:
                    raise FieldError(f"category {category} is not in `categories`")
                segments[_id(info["id"], "id")] = is_thing[category]
            name, size = images[image_id]
            # Whether the files are there is asked for the images of a narrative only.
            result[image_id] = _Panoptic(
                name, self.image_dir / name, map_name, self.panoptic_dir / map_name, size, segments
            )

        self._read_entries(self.panoptic_json, "categories", content["categories"], add_category)
        self._read_entries(self.panoptic_json, "images", content["images"], add_image)
        self._read_entries(self.panoptic_json, "annotations", content["annotations"], add_annotation)
        return result

    def _read_records(self, excluded: ImageIds) -> list[_Record]:
        content = load_json(self.narratives_file, "narratives file")
        narratives = require_list(content, "narratives", self.narratives_file)
        panoptic = self._read_panoptic()
        records = []

        def add(narrative: Any, record_id: str) -> None:
            image_id = _id(narrative["image_id"], "image_id")
            name = panoptic[image_id].image_name if image_id in panoptic else None
            if excluded.holds(image_id, None) or (name and excluded.holds(None, name)):
                self._log.drop("excluded image", record_id)
                return
            record = self._read_record(record_id, image_id, narrative, panoptic)
            if record.phrases:
                records.append(record)
            else:
                self._log.drop("no grounded phrase", record_id)

        remedy = "Mend the annotation, or use policy='skip' to leave such narratives out."
        for position, narrative in enumerate(narratives):
            record_id = f"{self.name}/narrative-{position}"
            place = f"narrative {position}"
            if isinstance(narrative, dict) and "image_id" in narrative:
                record_id += f"-image-{_shown_id(narrative['image_id'])}"
                place += f" ({record_id})"
            with self._reading(self.narratives_file, place, remedy):
                require_keys(
                    narrative, ("image_id", "segments"), self.narratives_file, f"narrative {position}"
                )
                add(narrative, record_id)
        return records

    def _read_record(
        self, record_id: str, image_id: int, narrative: dict[str, Any], panoptic: dict[int, _Panoptic]
    ) -> _Record:
        info = panoptic.get(image_id)
        if info is None:
            message = f"image {image_id} is not in {self.panoptic_json.name}, or faulty there"
            raise FieldError(message, "unknown image")
        existing_file(self.image_dir, info.image_name, "image")
        existing_file(self.panoptic_dir, info.map_name, "panoptic map")
        words: list[str] = []
        phrases: list[Phrase] = []
        groups: list[tuple[int, ...]] = []
        start = 0
        for number, segment in enumerate(list_of(narrative["segments"], "segments")):
            if not isinstance(segment, dict):
                raise FieldError(f"segment {number} is {shown(segment)}, not an object")
            if "utterance" not in segment:
                raise FieldError(f"segment {number}: key `utterance` is missing")
            utterance = check_words(segment["utterance"], f"segments[{number}].utterance").strip()
            given = segment.get("segment_ids")
            ids = tuple(
                _id(value, "segment_ids") for value in list_of([] if given is None else given, "segment_ids")
            )
            if not utterance:
                if ids:
                    message = f"segment {number} has segment ids but an empty utterance"
                    raise FieldError(message, "empty phrase")
                continue
            unknown = [segment_id for segment_id in ids if segment_id not in info.is_thing]
            if unknown:
                message = (
                    f"phrase {utterance!r}: segment {unknown[0]} is not in its image's panoptic annotation"
                )
                raise FieldError(message, "unknown segment")
            if ids:
                plural = flag(segment.get("plural") or False, "plural")
                is_thing = (plural and self.plural_is_thing) or info.is_thing[ids[0]]
                span = (start, start + len(utterance))
                phrases.append(Phrase(spans=(span,), is_thing=is_thing, is_plural=plural))
                groups.append(ids)
            words.append(utterance)
            start += len(utterance) + 1
        return _Record(record_id, info, " ".join(words), tuple(phrases), tuple(groups))

    def _read(self, record: _Record) -> Sample:
        info = record.panoptic
        image = self._load_image(info.image_path, record.record_id)
        check_image_size(image, info.size, info.image_path, record.record_id)
        return Sample(
            record_id=record.record_id,
            image=image,
            text=record.text,
            phrases=record.phrases,
            masks=self._decode_masks(record),
            prompt=self.prompt,
            image_id=str(info.image_path),
            meta={"segment_ids": [list(ids) for ids in record.segment_ids]},
        )

    def _decode_masks(self, record: _Record) -> np.ndarray:
        path = record.panoptic.map_path
        remedy = (
            "Use the panoptic file that belongs to the annotation, or policy='skip' with verify_images=True."
        )

        def problem(message: str, kind: str) -> RecordError:
            return record_error(str(path), record.record_id, message, remedy, kind)

        segments = read_panoptic_ids(path, record.panoptic.size, record.record_id)
        masks = np.stack([np.isin(segments, ids) for ids in record.segment_ids])
        for index, mask in enumerate(masks):
            if not mask.any():
                start, end = record.phrases[index].spans[0]
                raise problem(f"phrase {record.text[start:end]!r} has no pixel in the map", "empty mask")
        return masks


def _id(value: Any, what: str) -> int:
    """An id; the published narratives write integers as texts."""
    return integer(value, what, text=True)


def _shown_id(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 20 else shown(value)
