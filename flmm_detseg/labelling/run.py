"""Labels the images of a folder and writes one COCO JSON; continues where an earlier run stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg.datasets.coco_file import name_key
from flmm_detseg.datasets.files import read_lines, require_dir
from flmm_detseg.datasets.images import check_image_size, load_image
from flmm_detseg.datasets.policy import ProblemLog, RecordError, record_error
from flmm_detseg.datasets.voc import write_coco
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation.results import RecordStore, fingerprint
from flmm_detseg.labelling.classes import (
    GroundTruth,
    LabelClass,
    read_categories,
    read_ground_truth,
    resolve_classes,
)
from flmm_detseg.labelling.models import Detections, GroundingDinoDetector, SamSegmenter
from flmm_detseg.labelling.select import select_boxes
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
        detector: Grounding DINO, a folder or a hub name.
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

    Raises:
        ConfigError: A value cannot be used.
    """

    image_dir: str
    out: str
    detector: str
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

    def __post_init__(self) -> None:
        """Checks the values that need no file."""
        if self.classes is not None and self.categories is not None:
            raise ConfigError("give class names or a file with categories, not both")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` is {self.batch_size}; at least 1 is needed")


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
    classes, categories = resolve_classes(
        options.classes,
        () if truth is None else truth.categories,
        () if options.categories is None else read_categories(options.categories),
    )
    log = ProblemLog(options.policy)
    names = _image_names(options, log)
    root = find(options.image_dir)
    refuse_overwrite(
        options.out,
        [options.ground_truth, options.categories, options.image_list, *(root / name for name in names)],
    )
    if truth is not None:
        truth.check_names(root, names)
    device = _device(options.device)
    rules = options.thresholds
    detector = GroundingDinoDetector(options.detector, classes, rules.box, rules.text, device)
    segmenter = None if options.segmenter is None else SamSegmenter(options.segmenter, device)
    provenance = _provenance(options, classes, detector, segmenter)
    out = Path(options.out)
    store = RecordStore(out.parent / f"{out.stem}.records" / fingerprint(provenance)[:16], rank=0)
    if options.fresh:
        store.clear()
    done = set(store.merge()) & set(names)
    labeller = _Labeller(options, classes, truth, detector, segmenter, log)
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
    return _figures(options, content, records, usable, len(done), log, truth)


class _Labeller:
    """Images to records: plain dicts with ``size``, ``objects`` and ``dropped``."""

    def __init__(
        self,
        options: LabelOptions,
        classes: Sequence[LabelClass],
        truth: GroundTruth | None,
        detector: GroundingDinoDetector,
        segmenter: SamSegmenter | None,
        log: ProblemLog,
    ) -> None:
        self._root, self._thresholds = find(options.image_dir), options.thresholds
        self._category_ids = [entry.category_id for entry in classes]
        self._truth, self._detector, self._segmenter, self._log = truth, detector, segmenter, log

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
            return dict(zip(images, self._detector.detect(list(images.values())), strict=True))
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
        masks = None if self._segmenter is None else self._segmenter.segment(image, boxes.boxes_xyxy)
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
            if masks is not None:
                if not masks[number].any():
                    dropped["empty mask"] += 1
                    continue
                entry |= {"area": int(masks[number].sum()), "segmentation": encode_rle(masks[number])}
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
    detector: GroundingDinoDetector,
    segmenter: SamSegmenter | None,
) -> dict[str, Any]:
    """What decides the labels, and nothing else: no date, device or batch size."""
    truth = options.ground_truth
    return {
        "tool": "flmm_detseg tools/pseudo_label.py",
        "detector": detector.facts,
        "segmenter": None if segmenter is None else segmenter.facts,
        "prompts": [prompt.text for prompt in detector.prompts],
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
