"""Labels the images of a folder and writes one COCO JSON; continues where an earlier run stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg.datasets.coco_file import name_key
from flmm_detseg.datasets.files import read_lines, require_dir
from flmm_detseg.datasets.images import check_image_size, load_image
from flmm_detseg.datasets.policy import ProblemLog, RecordError, record_error
from flmm_detseg.datasets.voc import write_coco
from flmm_detseg.datasets.vqav2 import write_jsonl
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation.results import RecordStore, fingerprint
from flmm_detseg.labelling.classes import (
    GroundTruth,
    LabelClass,
    read_categories,
    read_ground_truth,
    resolve_classes,
    with_texts,
)
from flmm_detseg.labelling.models import Detections, GroundingDinoDetector, SamSegmenter
from flmm_detseg.labelling.phrases import text_phrases
from flmm_detseg.labelling.select import select_boxes
from flmm_detseg.labelling.texts import TextDetector, TextOptions
from flmm_detseg.labelling.thresholds import Thresholds
from flmm_detseg.utils.lock import holding
from flmm_detseg.utils.outputs import refuse_overwrite
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.provenance import file_hash, versions
from flmm_detseg.utils.rle import encode_rle
from flmm_detseg.utils.values import FieldError, check_text

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class LabelOptions:
    """What to label, and how.

    Attributes:
        image_dir: Folder of the images (sub-folders too); ``file_name`` starts from it.
        out: COCO JSON to write; records of a run on its way are beside it, in ``STEM.records``.
        detector: Grounding DINO, a folder or a hub name; None: texts only.
        segmenter: SAM, likewise; None: boxes only.
        classes: Names (``"tv|television"``: with synonyms); None: those of ``categories``, else of ``ground_truth``.
        categories: COCO JSON whose categories are looked for.
        ground_truth: COCO JSON of (some of) the images; its annotations are kept.
        image_list: Text file with a ``file_name`` a line; None: all images of the folder.
        thresholds: What a box needs to become a label.
        batch_size: Images read and recorded per step; those of one size are one batch of the detector.
        device: ``"cpu"``, ``"cuda"``, ...
        policy: ``"raise"`` | ``"skip"`` for images that cannot be read.
        fresh: Forget what an earlier run with these settings has done.
        texts: How lines of text are looked for, which get the class ``text``; None: they are not.
        phrases: JSONL file of own data to write beside: the texts as phrases.

    Raises:
        ConfigError: A value cannot be used.
    """

    image_dir: str
    out: str
    detector: str | None = None
    segmenter: str | None = None
    classes: tuple[str, ...] | None = None
    categories: str | None = None
    ground_truth: str | None = None
    image_list: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    batch_size: int = 4
    device: str = "cpu"
    policy: str = "raise"
    fresh: bool = False
    texts: TextOptions | None = None
    phrases: str | None = None

    def __post_init__(self) -> None:
        """Checks the values that need no file."""
        if self.classes is not None and self.categories is not None:
            raise ConfigError("give class names or a file with categories, not both")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` is {self.batch_size}; at least 1 is needed")
        if self.detector is None:
            if self.texts is None:
                raise ConfigError(
                    "nothing to look for: name a detector for classes, or ask for texts, or both"
                )
            for name in ("classes", "categories", "segmenter"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"`{name}` is given, but no detector that finds classes: name one, or leave `{name}` out"
                    )
        if self.phrases is not None and self.texts is None:
            raise ConfigError("`phrases` is the file of texts as phrases, but texts are not looked for")
        if self.phrases is not None and Path(self.phrases).absolute() == Path(self.out).absolute():
            raise ConfigError(f"`phrases` and `out` are the same file, {self.out}; give two")


def pseudo_label(options: LabelOptions, progress: bool = True) -> dict[str, Any]:
    """Labels images.

    The output is COCO's instance format: images and annotations of the ground truth as they are (ids too), and
    annotations with ``pseudo: true`` and a ``score``. Only images that were labelled are in it. ``info.provenance``
    says what made it, without a date: the same run writes the same bytes.

    Args:
        options: What and how.
        progress: Show a progress bar.

    Returns:
        Figures: counts of images, annotations and dropped boxes, and the skipped images by kind and by name.

    Raises:
        ConfigError: A setting or a model cannot be used.
        CheckpointError: The weights of a model are unusable.
        DataError: A file is missing or unusable, or no image can be used.
    """
    out = Path(options.out)
    with holding(out.parent / f".{out.name}.lock", f"labelling into {out}"):
        return _pseudo_label(options, progress)


def _pseudo_label(options: LabelOptions, progress: bool) -> dict[str, Any]:
    truth = None if options.ground_truth is None else read_ground_truth(options.ground_truth)
    classes, categories = _classes(options, truth)
    log = ProblemLog(options.policy)
    names = _image_names(options, log)
    root = find(options.image_dir)
    read = [options.ground_truth, options.categories, options.image_list, *(root / name for name in names)]
    refuse_overwrite(options.out, read)
    if options.phrases is not None:
        refuse_overwrite(options.phrases, [*read, options.out])
    if truth is not None:
        truth.check_names(root, names)
    device = _device(options.device)
    rules = options.thresholds
    detector, reader = None, None
    if options.detector is not None:
        looked_for = classes if options.texts is None else classes[:-1]
        detector = GroundingDinoDetector(options.detector, looked_for, rules.box, rules.text, device)
    if options.texts is not None:
        reader = TextDetector(options.texts, len(classes) - 1)
    segmenter = None if options.segmenter is None else SamSegmenter(options.segmenter, device)
    provenance = _provenance(options, classes, detector, segmenter, reader)
    out = Path(options.out)
    store = RecordStore(out.parent / f"{out.stem}.records" / fingerprint(provenance)[:16], rank=0)
    if options.fresh:
        store.clear()
    done = set(store.merge()) & set(names)
    finders = [finder for finder in (detector, reader) if finder is not None]
    labeller = _Labeller(options, classes, truth, finders, segmenter, log)
    waiting = [name for name in names if name not in done]
    with tqdm(total=len(names), initial=len(done), desc="labels", unit="image", disable=not progress) as bar:
        for start in range(0, len(waiting), options.batch_size):
            batch = waiting[start : start + options.batch_size]
            store.append((name, [record]) for name, record in labeller.label(batch))
            bar.update(len(batch))
    records = {name: facts[0] for name, facts in store.merge().items()}
    usable = [name for name in names if name in records]
    if not usable:
        raise DataError(
            f"{options.image_dir}: none of {len(names)} images can be used. First problem: {log.problems[0]}"
        )
    content = _coco(usable, records, classes, categories, truth, provenance)
    write_coco(content, options.out)
    figures = _figures(options, content, records, usable, len(done), log, truth)
    if options.phrases is not None:
        lines, left_out = text_phrases(content)
        write_jsonl(lines, options.phrases)
        figures["phrases"] = {
            "out": options.phrases,
            "images": len(lines),
            "phrases": sum(len(line["phrases"]) for line in lines),
            "left_out": dict(left_out.most_common()),
        }
    return figures


def _classes(
    options: LabelOptions, truth: GroundTruth | None
) -> tuple[tuple[LabelClass, ...], list[dict[str, Any]]]:
    """Classes to look for, and categories of the output; that of texts is the last class."""
    true = () if truth is None else truth.categories
    if options.detector is None:
        return with_texts((), true)
    listed = () if options.categories is None else read_categories(options.categories)
    classes, categories = resolve_classes(options.classes, true, listed)
    if options.texts is None:
        return classes, categories
    classes, categories = with_texts(classes, categories)
    if len(classes) == 1:
        raise ConfigError("no class but texts to look for: leave the detector out, or give class names")
    return classes, categories


class _Finder(Protocol):
    """What gives boxes with classes."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]: ...


class _Labeller:
    """Images to records: plain dicts with ``size``, ``objects`` and ``dropped``."""

    def __init__(
        self,
        options: LabelOptions,
        classes: Sequence[LabelClass],
        truth: GroundTruth | None,
        finders: Sequence[_Finder],
        segmenter: SamSegmenter | None,
        log: ProblemLog,
    ) -> None:
        self._root, self._thresholds = find(options.image_dir), options.thresholds
        self._category_ids = [entry.category_id for entry in classes]
        self._truth, self._finders, self._segmenter, self._log = truth, finders, segmenter, log
        self._outlines = segmenter is not None or options.detector is None

    def label(self, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Records of those images that can be read."""
        images: dict[str, np.ndarray] = {}
        for name in names:
            try:
                images[name] = self._load(name)
            except RecordError as error:
                self._log.handle(error)
        records = []
        for name, boxes in self._detect(images).items():
            try:
                records.append((name, self._record(name, images[name], boxes)))
            except ValueError as error:
                self._log.handle(self._unfit(name, images[name], error))
        return records

    def _detect(self, images: dict[str, np.ndarray]) -> dict[str, Detections]:
        """Boxes of each image; an image of a size that the detector cannot take is a problem of its own."""
        if not images:
            return {}
        try:
            found = [finder.detect(list(images.values())) for finder in self._finders]
            return dict(zip(images, map(Detections.join, zip(*found, strict=True)), strict=True))
        except ValueError as error:
            if len(images) > 1:
                parts = [self._detect({name: image}) for name, image in images.items()]
                return {name: boxes for part in parts for name, boxes in part.items()}
            ((name, image),) = images.items()
            self._log.handle(self._unfit(name, image, error))
            return {}

    def _unfit(self, name: str, image: np.ndarray, error: ValueError) -> RecordError:
        message = (
            f"the models cannot take an image of {image.shape[0]} x {image.shape[1]} pixels (H x W): {error}"
        )
        remedy = "Leave it out, or such images with policy='skip' (--skip)."
        return record_error(str(self._root / name), "", message, remedy, "unfit image")

    def _load(self, name: str) -> np.ndarray:
        path = self._root / name
        image = load_image(path)
        entry = None if self._truth is None else self._truth.images.get(name)
        if entry is not None:
            check_image_size(image, (entry["height"], entry["width"]), path, f"image {entry['id']}")
        return image

    def _record(self, name: str, image: np.ndarray, found: Detections) -> dict[str, Any]:
        size = (image.shape[0], image.shape[1])
        annotated = () if self._truth is None else self._truth.of_image(name)
        boxes, dropped = select_boxes(found, size, self._thresholds, annotated, self._category_ids)
        lines = boxes.lines or (None,) * len(boxes)
        masks: dict[int, np.ndarray] = {}
        if self._segmenter is not None:  # the outlines of texts are known
            others = [number for number, line in enumerate(lines) if line is None]
            masks = dict(zip(others, self._segmenter.segment(image, boxes.boxes_xyxy[others]), strict=True))
        objects = []
        for number in range(len(boxes)):
            x0, y0, x1, y1 = boxes.boxes_xyxy[number].tolist()
            width, height = x1 - x0, y1 - y0
            entry: dict[str, Any] = {
                "category_id": self._category_ids[int(boxes.labels[number])],
                "bbox": [round(value, 2) for value in (x0, y0, width, height)],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": round(float(boxes.scores[number]), 4),
                "pseudo": True,
            }
            if number in masks:
                if not masks[number].any():
                    dropped["empty mask"] += 1
                    continue
                entry |= {"area": int(masks[number].sum()), "segmentation": encode_rle(masks[number])}
            if (line := lines[number]) is not None:
                entry["text"] = line.text
                if self._outlines:
                    outline = line.corners_xy.astype(np.float32)
                    entry["area"] = round(cv2.contourArea(outline), 2)
                    entry["segmentation"] = [[round(value, 2) for value in outline.ravel().tolist()]]
            objects.append(entry)
        return {"size": list(size), "objects": objects, "dropped": dict(dropped)}


def _image_names(options: LabelOptions, log: ProblemLog) -> list[str]:
    root = require_dir(options.image_dir, "image folder")
    if options.image_list is not None:
        names = [name_key(line) for line in read_lines(options.image_list, "list of images")]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{options.image_list}: {repeated[0]} occurs twice. List every image once.")
        where = options.image_list
    else:
        paths = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        names = sorted(path.relative_to(root).as_posix() for path in paths)
        where = options.image_dir
    if not names:
        raise DataError(f"{where}: no image in it ({', '.join(sorted(_SUFFIXES))}).")
    usable = []
    for name in names:
        try:
            usable.append(check_text(name, "file_name"))
        except FieldError as error:  # bytes that are no UTF-8: no JSON can hold the name
            remedy = "Rename the file, or leave such images out (policy='skip', --skip)."
            log.handle(
                record_error(str(root), name, f"its file name cannot be stored: {error}", remedy, error.kind)
            )
    if not usable:
        raise DataError(f"{where}: no image can be used. First problem: {log.problems[0]}")
    return usable


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"`device` is {name!r}; allowed: cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"`device` is {name!r}, but no such device is there; use cpu")
    return device


def _provenance(
    options: LabelOptions,
    classes: Sequence[LabelClass],
    detector: GroundingDinoDetector | None,
    segmenter: SamSegmenter | None,
    reader: TextDetector | None,
) -> dict[str, Any]:
    """What decides the labels, and nothing else: no date, device or batch size."""
    truth = options.ground_truth
    return {
        "tool": "flmm_detseg tools/pseudo_label.py",
        "detector": None if detector is None else detector.facts,
        "segmenter": None if segmenter is None else segmenter.facts,
        "texts": None if reader is None else reader.facts,
        "prompts": [] if detector is None else [prompt.text for prompt in detector.prompts],
        "classes": {entry.name: list(entry.wordings) for entry in classes},
        "category_ids": [entry.category_id for entry in classes],
        "thresholds": asdict(options.thresholds),
        "ground_truth": None if truth is None else {"file": Path(truth).name, "sha256": file_hash(truth)},
        "versions": versions(),
    }


def _coco(
    names: Sequence[str],
    records: dict[str, dict[str, Any]],
    classes: Sequence[LabelClass],
    categories: list[dict[str, Any]],
    truth: GroundTruth | None,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    known = {} if truth is None else truth.images
    given = [] if truth is None else [entry for entries in truth.annotations.values() for entry in entries]
    # Above all ids of the ground truth, used here or not: two outputs of one file can then be united.
    next_image = max((entry["id"] for entry in known.values()), default=0) + 1
    next_annotation = max((entry["id"] for entry in given), default=0) + 1
    images, annotations = [], []
    for name in names:
        entry = known.get(name)
        if entry is None:
            height, width = records[name]["size"]
            entry = {"id": next_image, "file_name": name, "height": height, "width": width}
            next_image += 1
        images.append(entry)
        annotations += [] if truth is None else truth.of_image(name)
        for item in records[name]["objects"]:
            annotations.append({"id": next_annotation, "image_id": entry["id"], **item})
            next_annotation += 1
    return {
        "info": {"description": "pseudo-labels", "provenance": provenance},
        "licenses": [] if truth is None else truth.licenses,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _figures(
    options: LabelOptions,
    content: dict[str, Any],
    records: dict[str, dict[str, Any]],
    names: Sequence[str],
    num_done: int,
    log: ProblemLog,
    truth: GroundTruth | None,
) -> dict[str, Any]:
    name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
    pseudo = [entry for entry in content["annotations"] if entry.get("pseudo")]
    dropped: Counter[str] = Counter()
    for name in names:
        dropped.update(records[name]["dropped"])
    return {
        "out": options.out,
        "images": len(names),
        "images_of_earlier_runs": num_done,
        "images_without_objects": len(names) - len({entry["image_id"] for entry in content["annotations"]}),
        "pseudo_annotations": len(pseudo),
        "ground_truth_annotations": len(content["annotations"]) - len(pseudo),
        "ground_truth_images_left_out": 0 if truth is None else len(set(truth.images) - set(names)),
        "pseudo_by_class": dict(Counter(name_of[entry["category_id"]] for entry in pseudo).most_common()),
        "dropped_boxes": dict(dropped.most_common()),
        "skipped": log.counts(),
        "skipped_images": [str(problem) for problem in log.problems],
    }
