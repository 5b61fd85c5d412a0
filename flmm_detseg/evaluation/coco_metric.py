"""Detection and instance segmentation: COCO's average precision, and F1 of boxes without scores."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.structures import InstanceData

from flmm_detseg.errors import ConfigError, DataError, MissingDependencyError
from flmm_detseg.evaluation.box_f1 import text_box_figures
from flmm_detseg.evaluation.box_records import box_record, ordered_images
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Sample

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
            annotation_file=self.annotation_file,
            backend=self.backend,
            classwise=self.classwise,
        )


def box_figures(
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    *,
    annotation_file: str | Path | None = None,
    backend: str = "pycocotools",
    classwise: bool = False,
) -> dict[str, float]:
    """Figures of :func:`coco_figures` where boxes have scores, else of :func:`text_box_figures`."""
    if records and all("scores" in record for record in records):
        return coco_figures(
            records, classes, annotation_file=annotation_file, backend=backend, classwise=classwise
        )
    return text_box_figures(records)


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
    annotation_file: str | Path | None = None,
    backend: str = "pycocotools",
    classwise: bool = False,
) -> dict[str, float]:
    """COCO's figures, as fractions.

    Targets come from the records, with areas counted in mask pixels (box areas where there are no masks), or from a
    COCO file, with the areas written there (the official figures; categories are found by class name).

    Args:
        records: Of :func:`~flmm_detseg.evaluation.box_records.box_record`, with scores, in any order.
        classes: Class names by label; needed for ``annotation_file``, names the figures of ``classwise``.
        annotation_file: COCO file that holds the images of the records by ``image_id``; None: targets of the records.
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
        truth, image_ids, categories = _truth_of_file(records, annotation_file, classes)
    figures: dict[str, float] = {
        "num_images": len(records),
        "num_boxes": sum(len(record["boxes_xyxy"]) for record in records),
    }
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
    if not all("segmentation" in annotation for annotation in truth["annotations"]):
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


def _truth_of_file(
    records: Sequence[Mapping[str, Any]], annotation_file: str | Path, classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int], list[int]]:
    """The same from a COCO file, of the records' images only."""
    if classes is None:
        raise ConfigError(f"`annotation_file` {annotation_file} needs `classes` to find its categories")
    try:
        content = json.loads(Path(annotation_file).read_text(encoding="utf-8"))
        by_name = {category["name"]: category["id"] for category in content["categories"]}
        known = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{annotation_file}: not a COCO annotation file ({type(error).__name__}: {error})"
        ) from error
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise ConfigError(f"{annotation_file}: it has no category {missing[0]!r}")
    image_ids = {}
    for record in records:
        image_id = record["image_id"]
        if image_id not in known:
            raise DataError(f"{record['record_id']}: image {image_id!r} is not in {annotation_file}.")
        image_ids[record["record_id"]] = image_id
    categories = [by_name[name] for name in classes]
    wanted, chosen = set(image_ids.values()), set(categories)
    truth = {
        "images": [known[image_id] for image_id in sorted(wanted)],
        "annotations": [a for a in annotations if a["image_id"] in wanted and a["category_id"] in chosen],
        "categories": [category for category in content["categories"] if category["id"] in chosen],
    }
    return truth, image_ids, categories


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
