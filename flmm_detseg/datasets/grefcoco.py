"""gRefCOCO: expressions for one object, for several, or for none, answered by masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
)
from flmm_detseg.datasets.image_ids import ImageIds, read_images
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.mask_answers import REASONING, check_query, mask_phrases
from flmm_detseg.datasets.masks import check_parts, decode_parts
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.datasets.ref_files import RefImage, RefSentence, read_instances, read_sentences
from flmm_detseg.errors import ConfigError
from flmm_detseg.language.mask_wording import answer_with_masks, ask_for_mask
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text, flag, identifier, shown

SENTENCES = ("random", "first", "all")
TARGETS = ("union", "each")


@dataclass(frozen=True, slots=True)
class _Reference:
    """An expression in several wordings, and the objects that it names; none of them: it names nothing."""

    index: int
    ref_id: int | str
    image: RefImage
    ann_ids: tuple[int | str, ...]
    segmentations: tuple[Any, ...]
    sentences: tuple[RefSentence, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    reference: _Reference
    sentence: int | None  # which of its sentences; None: drawn per epoch


@DATASETS.register_module()
class GRefCOCODataset(GroundingDataset):
    """Expressions of gRefCOCO as samples of the task ``reasoning``: a question, and an answer with mask tokens.

    ``meta`` holds ``query`` (the sentence), ``ref_id``, ``sentence_id``, ``ann_ids`` and, of expressions for nothing,
    ``absent="expression"``.

    Args:
        refs_file: ``grefs(unc).json``: ``[{"ref_id", "ann_id": [...], "image_id", "split", "sentences", ...}]``.
        instances_file: As for :class:`~flmm_detseg.datasets.RefCOCODataset`.
        image_dir: Folder of the images (COCO ``train2014``).
        split: ``train``, ``val``, ``testA`` or ``testB``.
        sentences: ``"random"``: one sample a reference, its sentence and the wording of question and answer drawn per
            epoch, a function of (``seed``, epoch, reference) alone; ``"first"``; ``"all"``: one sample a sentence (the
            usual evaluation). Questions and answers of the last two have always the same form.
        targets: ``"union"``: one ``[SEG]`` for all objects together, as published figures have it; ``"each"``: one for
            each object, in the order of the file.
        seed: Of the draw.
        lower: As for :class:`~flmm_detseg.datasets.RefCOCODataset`, and so are the next ones.
        policy: For references that cannot be used.
        verify_images: Decode everything at construction.
        name: First part of record ids.
        exclude_image_ids_file: Images that must not come up.

    Raises:
        DataError: A file is missing, truncated or of another kind, or (``policy="raise"``) a reference is unusable.
        ConfigError: An argument has a value that is not allowed, or the split does not exist in the file.

    Source: Liu et al., GRES: Generalized Referring Expression Segmentation, CVPR 2023 (arXiv 2306.00968).
    """

    def __init__(
        self,
        refs_file: str,
        instances_file: str,
        image_dir: str,
        split: str = "train",
        sentences: str = "random",
        targets: str = "union",
        seed: int = 0,
        lower: bool = True,
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "grefcoco",
        exclude_image_ids_file: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(policy)
        for key, value, allowed in (("sentences", sentences, SENTENCES), ("targets", targets, TARGETS)):
            if value not in allowed:
                raise ConfigError(f"`{key}` is {value!r}; allowed: {', '.join(allowed)}")
        self.refs_file, self.instances_file = find(refs_file), find(instances_file)
        self.annotation_files = (self.refs_file, self.instances_file)
        self.image_dir = require_dir(image_dir, "image folder")
        self.split, self.sentences, self.targets = split, sentences, targets
        self.seed, self.lower, self.name = seed, lower, name
        self.records: list[_Record] = []
        for reference in self._read_references(read_images(exclude_image_ids_file)):
            stem = f"{name}/{split}/ref-{reference.ref_id}"
            if sentences == "all":
                self.records += [
                    _Record(f"{stem}/sentence-{k}", reference, k) for k in range(len(reference.sentences))
                ]
            else:
                self.records.append(_Record(stem, reference, 0 if sentences == "first" else None))
        self._finish(verify_images, f"{self.refs_file} split {split}")

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; its phrases are mask tokens, which have no words."""
        return str(self.records[index].reference.image.path), []

    def count(self, indices: Iterable[int] | None = None) -> dict[str, Any]:
        """Records with one, several and no object."""
        records = self.records if indices is None else [self.records[index] for index in indices]
        numbers = [len(record.reference.ann_ids) for record in records]
        return {
            "one_target": numbers.count(1),
            "several_targets": sum(number > 1 for number in numbers),
            "without_target": numbers.count(0),
        }

    def _read_references(self, excluded: ImageIds) -> list[_Reference]:
        refs = require_list(load_json(self.refs_file, "refs file"), "references", self.refs_file)
        images, annotations = read_instances(self._read_entries, self.instances_file, self.image_dir)
        splits: set[str] = set()
        seen: set[int | str] = set()
        found: list[_Reference] = []
        for position, ref in enumerate(refs):
            known = isinstance(ref, dict) and "ref_id" in ref
            place = f"ref-{shown(ref['ref_id'])}" if known else f"entry {position}"
            remedy = "Mend the annotation, or use policy='skip' to leave such references out."
            with self._reading(self.refs_file, place, remedy):
                keys = ("ref_id", "ann_id", "image_id", "split", "sentences")
                require_keys(ref, keys, self.refs_file, place)
                splits.add(check_text(ref["split"], "split"))
                if ref["split"] != self.split:
                    continue
                ref_id, image_id = (identifier(ref[key], key) for key in ("ref_id", "image_id"))
                image = images.get(image_id)
                if excluded.holds(image_id, None) or (image and excluded.holds(None, image.name)):
                    self._log.drop("excluded image", f"{self.name}/{self.split}/ref-{ref_id}")
                    continue
                if image is None:
                    message = f"image {image_id!r} is not in {self.instances_file.name}, or faulty there"
                    raise FieldError(message, "unknown image")
                if ref_id in seen:
                    raise FieldError("its ref_id occurs twice in the split", "duplicate id")
                seen.add(ref_id)
                existing_file(self.image_dir, image.name, "image")
                ann_ids = _targets(ref)
                sentences = read_sentences(ref["sentences"], self.lower)
                for sentence in sentences:
                    check_query(sentence.text, "sentences")
                masks = tuple(self._segmentation(ann_id, image, annotations) for ann_id in ann_ids)
                found.append(_Reference(len(found), ref_id, image, ann_ids, masks, sentences))
        if self.split not in splits:
            raise ConfigError(
                f"{self.refs_file}: no split {self.split!r}; it has {', '.join(sorted(splits)) or 'none'}"
            )
        return found

    def _segmentation(
        self, ann_id: int | str, image: RefImage, annotations: dict[int | str, dict[str, Any]]
    ) -> Any:
        annotation = annotations.get(ann_id)
        if annotation is None:
            message = f"annotation {ann_id!r} is not in {self.instances_file.name}, or faulty there"
            raise FieldError(message, "unknown annotation")
        if annotation.get("image_id", image.image_id) != image.image_id:
            raise FieldError(
                f"annotation {ann_id} is of image {shown(annotation['image_id'])}", "unknown annotation"
            )
        segmentation = annotation.get("segmentation")
        try:
            check_parts(segmentation, image.size)
        except ValueError as error:
            raise FieldError(f"mask of annotation {ann_id}: {error}", "bad mask") from error
        return segmentation

    def _read(self, record: _Record) -> Sample:
        reference = record.reference
        image = self._load_image(reference.image.path, record.record_id)
        check_image_size(image, reference.image.size, reference.image.path, record.record_id)
        draw = np.random.default_rng((self.seed, self.epoch, reference.index))
        number = int(draw.integers(len(reference.sentences))) if record.sentence is None else record.sentence
        sentence = reference.sentences[number]
        masks = self._decode_masks(record, image.shape[:2])
        if self.targets == "union" and len(masks):
            masks = np.logical_or.reduce(masks)[None]
        wording = draw if self.sentences == "random" else None
        query = check_query(sentence.text, "sentences")
        prompt, text = ask_for_mask(query, wording), answer_with_masks(len(masks), (), wording)
        meta = {
            "query": query,
            "ref_id": reference.ref_id,
            "sentence_id": sentence.sentence_id,
            "ann_ids": list(reference.ann_ids),
        }
        return Sample(
            record_id=record.record_id,
            image=image,
            text=text,
            phrases=mask_phrases(text),
            masks=masks,
            prompt=prompt,
            image_id=str(reference.image.path),
            task=REASONING,
            meta=meta if reference.ann_ids else {**meta, "absent": "expression"},
        )

    def _decode_masks(self, record: _Record, image_size: tuple[int, ...]) -> np.ndarray:
        """Bool ``[number of objects, H, W]``."""
        reference = record.reference
        masks = np.zeros((len(reference.ann_ids), *image_size), dtype=bool)
        for number, (ann_id, segmentation) in enumerate(zip(reference.ann_ids, reference.segmentations)):
            try:
                masks[number] = decode_parts(segmentation, reference.image.size)
                if not masks[number].any():
                    raise ValueError("it is empty")
            except ValueError as error:
                message = f"mask of annotation {ann_id} cannot be used ({error})"
                remedy = "Mend the annotation, or use policy='skip' with verify_images=True."
                raise record_error(
                    str(self.instances_file), record.record_id, message, remedy, "bad mask"
                ) from error
        return masks


def _targets(ref: dict[str, Any]) -> tuple[int | str, ...]:
    """Ids of the objects that a reference names; ``[-1]`` is how the file says none."""
    ids = tuple(identifier(value, "ann_id") for value in list_of(ref["ann_id"], "ann_id"))
    ids = () if ids == (-1,) else ids
    nothing = ref.get("no_target")
    if nothing is not None and flag(nothing, "no_target") != (not ids):
        raise FieldError(f"`no_target` is {shown(nothing)} and `ann_id` {shown(ref['ann_id'])}")
    if len(set(ids)) != len(ids):
        raise FieldError(f"`ann_id` {shown(ref['ann_id'])} names an object twice")
    return ids
