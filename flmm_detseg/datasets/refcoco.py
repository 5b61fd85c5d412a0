"""RefCOCO, RefCOCO+, RefCOCOg and refCLEF from the published ``refs(*).p`` and ``instances.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset, join_sentences
from flmm_detseg.datasets.files import (
    existing_file,
    require_dir,
    require_keys,
    require_list,
    words_argument,
)
from flmm_detseg.datasets.image_ids import ImageIds, read_images
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.masks import check_parts, decode_parts
from flmm_detseg.datasets.policy import RecordError, record_error
from flmm_detseg.datasets.ref_files import RefImage, read_instances, read_sentences
from flmm_detseg.datasets.safe_pickle import load_plain_pickle
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import (
    FieldError,
    check_text,
    identifier,
    shown,
)

SENTENCES = ("random", "first", "all")
LAYOUTS = ("concat", "split")


@dataclass(frozen=True, slots=True)
class _Object:
    """One entry of the refs file: an object and the sentences that refer to it."""

    index: int  # position in the split: the random draw's key, independent of the layout
    ref_id: int | str
    ann_id: int | str
    image: RefImage
    segmentation: Any
    sentences: tuple[str, ...]
    sentence_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    objects: tuple[_Object, ...]
    sentence: int | None  # which sentence of each object; None: drawn per epoch


@DATASETS.register_module()
class RefCOCODataset(GroundingDataset):
    """Referring expressions as phrases to be grounded.

    Evaluation protocols are named by two arguments: ``sentences`` (``first``: F-LMM's; ``all``: the usual
    one of referring segmentation) and ``layout`` (``concat``: the expressions of an image in one text, so
    that later ones see earlier ones; ``split``: one text per expression). Their cIoU values are not
    comparable with each other.

    Args:
        refs_file: ``refs(unc).p``, ``refs(umd).p`` or (refCLEF) ``refs(berkeley).p``; read as plain data, code in it is
            refused.
        instances_file: ``instances.json`` of the same folder.
        image_dir: Folder of the images (COCO ``train2014``; of refCLEF ``saiapr_tc-12``, with its folders).
        split: ``train``, ``val``, ``testA``, ``testB``, ``testC`` or ``test``, as the file has them.
        sentences: ``"random"``: one sentence per object and epoch, a function of (``seed``, epoch, object)
            alone; ``"first"``; ``"all"``: each sentence once (concat: round j holds every object's j-th
            sentence).
        layout: ``"concat"``: one sample per image (and round), each sentence followed by an un-grounded
            ``"."``; ``"split"``: one sample per object (and sentence).
        seed: Of the random draw.
        lower: Lower-case the sentences.
        policy: ``"raise"`` | ``"skip"`` for references that cannot be used (one reference is the unit
            skipped). A faulty entry of the instances file is listed too, and with it go the references to it.
        prompt: The user's question of every sample; None: the LMM adapter's default.
        max_phrases: Upper limit of phrases per sample; larger images are divided into several samples.
        verify_images: Decode every image and mask at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.
        exclude_image_ids_file: One file or several with ids of images that must not come up
            (``dropped["excluded image"]``), see :func:`~flmm_detseg.datasets.image_ids.read_images`: the files of
            the other two sets, whose splits overlap with this one's.

    Raises:
        DataError: A file is missing, truncated or of another kind, or (``policy="raise"``) a reference is
            unusable.
        ConfigError: An argument has a value that is not allowed, or the split does not exist in the file.

    Source: Kazemzadeh et al. 2014 / Yu et al. 2016 / Mao et al. 2016; text format of F-LMM, arXiv 2406.05821.
    """

    def __init__(
        self,
        refs_file: str,
        instances_file: str,
        image_dir: str,
        split: str = "train",
        sentences: str = "random",
        layout: str = "concat",
        seed: int = 0,
        lower: bool = True,
        policy: str = "raise",
        prompt: str | None = None,
        max_phrases: int | None = None,
        verify_images: bool = False,
        name: str = "refcoco",
        exclude_image_ids_file: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(policy)
        for key, value, allowed in (("sentences", sentences, SENTENCES), ("layout", layout, LAYOUTS)):
            if value not in allowed:
                raise ConfigError(f"`{key}` is {value!r}; allowed: {', '.join(allowed)}")
        if max_phrases is not None and max_phrases < 1:
            raise ConfigError(f"`max_phrases` is {max_phrases}; it must be at least 1, or None for no limit")
        self.refs_file, self.instances_file = find(refs_file), find(instances_file)
        self.annotation_files = (self.refs_file, self.instances_file)
        self.image_dir = require_dir(image_dir, "image folder")
        self.split, self.sentences, self.layout = split, sentences, layout
        self.seed, self.lower, self.prompt, self.max_phrases, self.name = (
            seed,
            lower,
            words_argument(prompt, "prompt"),
            max_phrases,
            name,
        )
        self.objects = self._read_objects(read_images(exclude_image_ids_file))
        self.records = self._make_records()
        self._finish(verify_images, f"{self.refs_file} split {split}")

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and sentences of a record, without reading its image."""
        record = self.records[index]
        return str(record.objects[0].image.path), self._draw(record)[0]

    def mentions(self, index: int) -> list[str]:
        """All sentences about a record's objects, whichever of them is read."""
        return [text for item in self.records[index].objects for text in item.sentences]

    def _read_objects(self, excluded: ImageIds) -> list[_Object]:
        refs = require_list(load_plain_pickle(self.refs_file, "refs file"), "references", self.refs_file)
        images, annotations = read_instances(self._read_entries, self.instances_file, self.image_dir)
        splits: set[str] = set()
        seen: set[int | str] = set()
        objects: list[_Object] = []

        def add(ref: Any, place: str) -> None:
            require_keys(ref, ("ref_id", "ann_id", "image_id", "split", "sentences"), self.refs_file, place)
            splits.add(check_text(ref["split"], "split"))
            if ref["split"] != self.split:
                return
            if isinstance(ref["ann_id"], list):
                message = (
                    "its ann_id is a list, as in gRefCOCO: an expression for several objects or for none; "
                    "GRefCOCODataset reads them"
                )
                raise FieldError(message, "several objects")
            ref = ref | {key: identifier(ref[key], key) for key in ("ref_id", "ann_id", "image_id")}
            name = images[ref["image_id"]].name if ref["image_id"] in images else None
            if excluded.holds(ref["image_id"], None) or (name and excluded.holds(None, name)):
                self._log.drop("excluded image", f"{self.name}/{self.split}/ref-{ref['ref_id']}")
                return
            if ref["ref_id"] in seen:
                raise FieldError("its ref_id occurs twice in the split", "duplicate id")
            seen.add(ref["ref_id"])
            objects.append(self._read_object(len(objects), ref, images, annotations))

        for position, ref in enumerate(refs):
            known = isinstance(ref, dict) and "ref_id" in ref
            place = f"ref-{shown(ref['ref_id'])}" if known else f"entry {position}"
            remedy = "Mend the annotation, or use policy='skip' to leave such references out."
            with self._reading(self.refs_file, place, remedy):
                add(ref, f"entry {position}")
        if self.split not in splits:
            raise ConfigError(
                f"{self.refs_file}: no split {self.split!r}; it has {', '.join(sorted(splits)) or 'none'}"
            )
        return objects

    def _read_object(
        self,
        index: int,
        ref: dict[str, Any],
        images: dict[int | str, RefImage],
        annotations: dict[int | str, dict[str, Any]],
    ) -> _Object:
        image, annotation = images.get(ref["image_id"]), annotations.get(ref["ann_id"])
        if image is None:
            message = f"image {ref['image_id']!r} is not in {self.instances_file.name}, or faulty there"
            raise FieldError(message, "unknown image")
        if annotation is None:
            message = f"annotation {ref['ann_id']!r} is not in {self.instances_file.name}, or faulty there"
            raise FieldError(message, "unknown annotation")
        existing_file(self.image_dir, image.name, "image")
        segmentation = annotation.get("segmentation")
        try:
            check_parts(segmentation, image.size)
        except ValueError as error:
            raise FieldError(f"mask of annotation {ref['ann_id']}: {error}", "bad mask") from error
        sentences = read_sentences(ref["sentences"], self.lower)
        texts, ids = tuple(s.text for s in sentences), tuple(s.sentence_id for s in sentences)
        return _Object(index, ref["ref_id"], ref["ann_id"], image, segmentation, texts, ids)

    def _make_records(self) -> list[_Record]:
        """Groups the objects by image, in order of first appearance: samples of an image are neighbours."""
        by_image: dict[str, list[_Object]] = {}
        for item in self.objects:
            by_image.setdefault(str(item.image.path), []).append(item)
        prefix = f"{self.name}/{self.split}"
        if self.layout == "split":
            groups = [[item] for group in by_image.values() for item in group]
            stems = [f"{prefix}/ref-{group[0].ref_id}" for group in groups]
        else:
            groups = list(by_image.values())
            stems = [f"{prefix}/image-{group[0].image.image_id}" for group in groups]
        records = []
        for stem, group in zip(stems, groups):
            if self.sentences == "all":
                for round_index in range(max(len(item.sentences) for item in group)):
                    members = [item for item in group if round_index < len(item.sentences)]
                    records += self._chunks(f"{stem}/sentence-{round_index}", members, round_index)
            else:
                records += self._chunks(stem, group, 0 if self.sentences == "first" else None)
        return records

    def _chunks(self, stem: str, members: list[_Object], sentence: int | None) -> list[_Record]:
        limit = self.max_phrases or len(members)
        if len(members) <= limit:
            return [_Record(stem, tuple(members), sentence)]
        starts = range(0, len(members), limit)
        return [
            _Record(f"{stem}/part-{part}", tuple(members[start : start + limit]), sentence)
            for part, start in enumerate(starts)
        ]

    def _draw(self, record: _Record) -> tuple[list[str], list[int]]:
        """The sentences of a record in the current epoch and their ids."""
        if record.sentence is not None:
            choices = [record.sentence] * len(record.objects)
        else:
            choices = [
                int(np.random.default_rng((self.seed, self.epoch, item.index)).integers(len(item.sentences)))
                for item in record.objects
            ]
        texts = [item.sentences[choice] for item, choice in zip(record.objects, choices)]
        return texts, [item.sentence_ids[choice] for item, choice in zip(record.objects, choices)]

    def _read(self, record: _Record) -> Sample:
        image_info = record.objects[0].image
        image = self._load_image(image_info.path, record.record_id)
        check_image_size(image, image_info.size, image_info.path, record.record_id)
        sentences, sentence_ids = self._draw(record)
        text, spans = join_sentences(sentences)
        return Sample(
            record_id=record.record_id,
            image=image,
            text=text,
            phrases=tuple(Phrase(spans=(span,)) for span in spans),
            masks=np.stack([self._decode_mask(item, record) for item in record.objects]),
            prompt=self.prompt,
            image_id=str(image_info.path),
            meta={
                "ref_ids": [item.ref_id for item in record.objects],
                "ann_ids": [item.ann_id for item in record.objects],
                "sentence_ids": sentence_ids,
            },
        )

    def _decode_mask(self, item: _Object, record: _Record) -> np.ndarray:
        def problem(message: str, kind: str) -> RecordError:
            remedy = "Mend the annotation, or use policy='skip' with verify_images=True."
            where = f"annotation {item.ann_id} ({record.record_id})"
            return record_error(str(self.instances_file), where, message, remedy, kind)

        try:
            mask = decode_parts(item.segmentation, item.image.size)
        except ValueError as error:
            raise problem(f"mask cannot be decoded ({error})", "bad mask") from error
        if not mask.any():
            raise problem("its mask is empty", "empty mask")
        return mask
