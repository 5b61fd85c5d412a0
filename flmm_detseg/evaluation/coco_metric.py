"""Detection and instance segmentation: COCO's average precision, and F1 of boxes without scores."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import InstanceData

from flmm_detseg.datasets.coco_file import CocoFile, CocoObject, check_mask, id_key
from flmm_detseg.datasets.masks import decode_segmentation
from flmm_detseg.errors import ConfigError, DataError, MissingDependencyError
from flmm_detseg.evaluation.box_f1 import text_box_figures
from flmm_detseg.evaluation.box_records import box_record, ordered_images
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.names import suggest

BACKENDS = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
    "faster": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster"),
}
# Positions in COCOeval.stats.
_STATS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


@METRICS.register_module()
class COCOBoxMetric(BaseMetric):
    """COCO detection metrics of predicted ``InstanceData``, as fractions.

    Predictions with scores give the figures of :func:`coco_figures`, predictions without (boxes read from text)
    those of :func:`text_box_figures`. Class names are the data set's ``metainfo["classes"]``.

    Args:
        annotation_file: COCO file to take the targets from; None: from the samples.
        backend: ``"pycocotools"`` or ``"faster"`` (the package faster-coco-eval).
        classwise: Also AP of every class.
        prefix: First part of the figures' names.
        collect_device: See MMEngine's ``BaseMetric``.

    Raises:
        ConfigError: Unknown backend.
        MissingDependencyError: The backend is not installed.
        DataError: ``annotation_file`` is unusable.
    """

    default_prefix = "coco"

    def __init__(
        self,
        annotation_file: str | None = None,
        backend: str = "pycocotools",
        classwise: bool = False,
        prefix: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_backend(backend)
        self.annotation_file, self.backend, self.classwise = annotation_file, backend, classwise
        # Here, so that a fault in the file does not wait for the end of the first pass.
        self._truth = None if annotation_file is None else read_truth(annotation_file)

    def process(
        self,
        data_batch: Mapping[str, Sequence[Sample]],
        data_samples: Sequence[InstanceData | Mapping[str, Any]],
    ) -> None:
        """Adds a batch: ``data_batch["samples"]`` and their predictions, index by index."""
        for sample, prediction in zip(data_batch["samples"], data_samples, strict=True):
            if isinstance(prediction, Mapping):  # MMEngine's evaluator takes its own containers apart
                prediction = InstanceData(**prediction)
            self.results.append(box_record(sample, prediction))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Figures of all records."""
        classes = (self.dataset_meta or {}).get("classes")
        return box_figures(
            results,
            classes,
            annotation_file=self._truth,
            backend=self.backend,
            classwise=self.classwise,
        )


def box_figures(
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    *,
    annotation_file: str | Path | CocoTruth | None = None,
    backend: str = "pycocotools",
    classwise: bool = False,
) -> dict[str, float]:
    """Figures of :func:`coco_figures` where boxes have scores, else of :func:`text_box_figures`."""
    if not any("scores" in record for record in records):
        return text_box_figures(records)
    # Some with scores and some without are an error there.
    return coco_figures(
        records, classes, annotation_file=annotation_file, backend=backend, classwise=classwise
    )


def check_backend(backend: str) -> None:
    """Refuses a backend that is unknown (ConfigError) or not installed (MissingDependencyError)."""
    if backend not in BACKENDS:
        raise ConfigError(f"`backend` is {backend!r}; allowed: {', '.join(BACKENDS)}")
    try:
        importlib.import_module(BACKENDS[backend][1])
    except ImportError as error:
        raise MissingDependencyError(
            f"backend {backend!r} needs a package that is not installed ({error}); "
            "pip install faster-coco-eval, or use backend='pycocotools'"
        ) from error


def coco_figures(
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    *,
    annotation_file: str | Path | CocoTruth | None = None,
    backend: str = "pycocotools",
    classwise: bool = False,
) -> dict[str, float]:
    """COCO's figures, as fractions.

    Targets come from the records, with areas counted in mask pixels (box areas where there are no masks), or from a
    COCO file, with the areas written there (the official figures; categories are found by class name).

    Args:
        records: Of :func:`~flmm_detseg.evaluation.box_records.box_record`, with scores, in any order.
        classes: Class names by label; needed for ``annotation_file``, names the figures of ``classwise``.
        annotation_file: COCO file (or :func:`read_truth` of it) that holds the images of the records by ``image_id``;
            None: targets of the records.
        backend: ``"pycocotools"`` or ``"faster"``.
        classwise: Also ``AP/CLASS`` of every class with a target.

    Returns:
        ``num_images``, ``num_boxes``, ``AP``, ``AP50``, ``AP75``, ``AP_small`` ..., ``AR@1``, ``AR@10``, ``AR@100``,
        ``AR_small`` ...; the same of masks as ``mask_AP`` ... where masks are predicted and annotated. A figure
        without a single target (say, no large object) is absent.

    Raises:
        ConfigError: ``annotation_file`` without ``classes``, or a class that is not in it.
        DataError: Scores or masks are missing in some records, or an image is not in the file.

    Source: cocodataset.org, detection evaluation; 101 recall points, at most 100 boxes an image, crowds ignored.
    """
    check_backend(backend)
    records = ordered_images(records)
    for record in records:
        if "scores" not in record:
            raise DataError(
                f"{record['record_id']}: its boxes have no scores; COCO's average precision needs them."
            )
    if annotation_file is None:
        truth, image_ids, categories = _truth_of_records(records, classes)
    else:
        file = annotation_file if isinstance(annotation_file, CocoTruth) else read_truth(annotation_file)
        truth, image_ids, categories = _truth_of_file(records, file, classes)
    figures: dict[str, float] = {
        "num_images": len(records),
        "num_boxes": sum(len(record["boxes_xyxy"]) for record in records),
    }
    if all(annotation["iscrowd"] for annotation in truth["annotations"]):
        print_log(
            "no average precision: no target counts "
            f"({len(truth['annotations'])} are there, each of them a crowd, iscrowd 1)",
            logger="current",
            level=logging.WARNING,
        )
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        if kind == "segm" and not _has_masks(records, truth):
            continue
        found = _detections(records, image_ids, categories, kind)
        evaluation = _evaluate(truth, found, sorted(image_ids.values()), kind, backend)
        values = dict(zip(_STATS, evaluation.stats[: len(_STATS)], strict=True))
        if classwise:
            values.update(_class_precisions(evaluation, truth))
        figures.update({prefix + key: float(value) for key, value in values.items() if value > -1})
    return figures


def _class_precisions(evaluation: Any, truth: Mapping[str, Any]) -> dict[str, float]:
    """AP by class; -1 for one without a target."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]: all areas, 100 boxes
    values = {}
    for k, category in enumerate(evaluation.params.catIds):
        counted = precision[:, :, k][precision[:, :, k] > -1]
        values[f"AP/{names[category]}"] = float(counted.mean()) if counted.size else -1.0
    return values


def _has_masks(records: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> bool:
    """Whether masks are both predicted and annotated; a part of the images only is an error."""
    if not any("masks" in record for record in records):
        return False
    missing = sum("segmentation" not in annotation for annotation in truth["annotations"])
    if missing:
        print_log(
            f"no figures of masks: {missing} of {len(truth['annotations'])} targets have none",
            logger="current",
            level=logging.WARNING,
        )
        return False
    for record in records:
        if record["boxes_xyxy"] and "masks" not in record:
            raise DataError(f"{record['record_id']}: boxes without masks, while other records have masks.")
    return True


def _truth_of_records(
    records: Sequence[Mapping[str, Any]], classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int], list[int]]:
    """COCO data set of the records' targets, image ids by record id, category ids by label."""
    labels = [label for record in records for label in (*record["labels"], *record["target"]["labels"])]
    num_classes = max(len(classes or ()), max(labels, default=-1) + 1)
    names = [*(classes or ()), *(str(label) for label in range(len(classes or ()), num_classes))]
    image_ids = {record["record_id"]: number for number, record in enumerate(records, start=1)}
    annotations: list[dict[str, Any]] = []
    for record in records:
        target = record["target"]
        for k, box in enumerate(target["boxes_xyxy"]):
            annotation = {
                "id": len(annotations) + 1,  # pycocotools reads 0 as "unmatched"
                "image_id": image_ids[record["record_id"]],
                "category_id": target["labels"][k] + 1,
                "bbox": _xywh(box),
                "area": target["areas"][k],
                "iscrowd": int(target["crowd"][k]),
            }
            if "masks" in target:
                annotation["segmentation"] = dict(target["masks"][k])
            annotations.append(annotation)
    truth = {
        "images": _images(records, image_ids),
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
    }
    return truth, image_ids, list(range(1, num_classes + 1))


@dataclass(frozen=True)
class CocoTruth:
    """Targets of a COCO file, checked, complete and with ids of our own (see :func:`read_truth`).

    Attributes:
        file: It.
        dataset: COCO data set: ids from 1, and ``area`` and ``iscrowd`` everywhere.
        image_ids: Our id by the file's, in the form of :func:`~flmm_detseg.datasets.coco_file.id_key`.
        category_ids: Our id by class name.
    """

    file: Path
    dataset: dict[str, Any]
    image_ids: dict[int | str, int]
    category_ids: dict[str, int]

    def check(self, classes: Sequence[str], image_ids: Iterable[Any] = ()) -> None:
        """Compares classes and images with the file.

        Args:
            classes: Class names in the order of the labels.
            image_ids: Images that were predicted.

        Raises:
            ConfigError: A class is not in it.
            DataError: An image is not in it.
        """
        for name in classes:
            if name not in self.category_ids:
                raise ConfigError(
                    f"{self.file}: it has no category {name!r}{suggest(name, self.category_ids)}"
                )
        for image_id in image_ids:
            if id_key(image_id) not in self.image_ids:
                raise DataError(f"image {image_id!r} is not in {self.file}.")


def read_truth(annotation_file: str | Path) -> CocoTruth:
    """Reads a COCO file to evaluate against.

    pycocotools takes annotation 0 for "unmatched", sorts ids, and needs ``area`` and ``iscrowd``; so ids are given
    anew, a missing ``area`` is that of the mask in pixels, else of the box, and a missing ``iscrowd`` is 0: as the
    reader has it. ``segmentation: []`` is no mask. What can be used as it is stays as it is.

    Args:
        annotation_file: COCO JSON.

    Returns:
        The content for pycocotools, and which id each image and category has there.

    Raises:
        DataError: The file or an entry is unusable; names it.
    """
    file = CocoFile(annotation_file, "COCO annotation file", names=False)
    file.read_images()
    # In the order of the file's own ids: of equal scores, those of the first image count first.
    image_ids = {key: number for number, key in enumerate(_in_order(file.images), start=1)}
    names = [file.categories[key] for key in sorted(file.categories)]
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    annotations: list[dict[str, Any]] = []

    def add_object(item: CocoObject, where: str) -> None:
        area = item.area
        if item.segmentation is not None:
            try:
                check_mask(item.segmentation, item.image.size)
                if area is None:
                    area = int(decode_segmentation(item.segmentation, item.image.size).sum())
            except ValueError as error:
                raise file.problem(where, f"mask: {error}", "bad mask") from error
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_ids[item.image.key],
                "category_id": category_ids[file.categories[item.category_id]],
                "bbox": list(item.bbox),
                "area": item.bbox[2] * item.bbox[3] if area is None else area,
                "iscrowd": int(item.crowd),
                **({} if item.segmentation is None else {"segmentation": item.segmentation}),
            }
        )

    file.read_objects(add_object)
    images = [
        {"id": number, "height": file.images[key].size[0], "width": file.images[key].size[1]}
        for key, number in image_ids.items()
    ]
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    return CocoTruth(file.file, dataset, image_ids, category_ids)


def _in_order(keys: Iterable[int | str]) -> list[int | str]:
    return sorted(keys, key=lambda key: (isinstance(key, str), key))


def _truth_of_file(
    records: Sequence[Mapping[str, Any]], truth: CocoTruth, classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int], list[int]]:
    """The same from a COCO file, of the records' images only."""
    if classes is None:
        raise ConfigError(f"`annotation_file` {truth.file} needs `classes` to find its categories")
    truth.check(classes)
    image_ids = {}
    for record in records:
        try:
            truth.check((), [record["image_id"]])
        except DataError as error:
            raise DataError(f"{record['record_id']}: {error}") from error
        image_ids[record["record_id"]] = truth.image_ids[id_key(record["image_id"])]
    categories = [truth.category_ids[name] for name in classes]
    wanted, chosen = set(image_ids.values()), set(categories)
    content = truth.dataset
    dataset = {
        "images": [image for image in content["images"] if image["id"] in wanted],
        "annotations": [
            dict(a)  # pycocotools writes into it
            for a in content["annotations"]
            if a["image_id"] in wanted and a["category_id"] in chosen
        ],
        "categories": [category for category in content["categories"] if category["id"] in chosen],
    }
    return dataset, image_ids, categories


def _images(records: Sequence[Mapping[str, Any]], image_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"id": image_ids[r["record_id"]], "height": r["image_size"][0], "width": r["image_size"][1]}
        for r in records
    ]


def _xywh(box_xyxy: Sequence[float]) -> list[float]:
    return [box_xyxy[0], box_xyxy[1], box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]]


def _detections(
    records: Sequence[Mapping[str, Any]], image_ids: Mapping[str, int], categories: Sequence[int], kind: str
) -> list[dict[str, Any]]:
    """COCO results. Boxes and masks apart: COCO takes the area of whichever is given."""
    found = []
    for record in records:
        for k, box in enumerate(record["boxes_xyxy"]):
            entry = {
                "image_id": image_ids[record["record_id"]],
                "category_id": categories[record["labels"][k]],
                "score": record["scores"][k],
            }
            if kind == "bbox":
                entry["bbox"] = _xywh(box)
            else:
                entry["segmentation"] = dict(record["masks"][k])
            found.append(entry)
    return found


def _evaluate(
    truth: dict[str, Any], found: list[dict[str, Any]], image_ids: list[int], kind: str, backend: str
) -> Any:
    coco_module, evaluation_module, name = BACKENDS[backend]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = importlib.import_module(coco_module).COCO()
        coco.dataset = truth
        coco.createIndex()
        if found:
            results = coco.loadRes(found)
        else:  # pycocotools cannot load an empty list
            results = importlib.import_module(coco_module).COCO()
            results.dataset = {**truth, "annotations": []}
            results.createIndex()
        evaluation = getattr(importlib.import_module(evaluation_module), name)(coco, results, kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
