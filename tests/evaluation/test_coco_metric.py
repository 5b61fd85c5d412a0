from __future__ import annotations

import importlib
import importlib.util
import json
from itertools import permutations

import numpy as np
import pytest
import torch
from fake_dense import CLASSES, disturbed_objects, make_dense_samples
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flmm_detseg.compat import install
from flmm_detseg.errors import ConfigError, DataError, MissingDependencyError, RunError
from flmm_detseg.evaluation import COCOBoxMetric, box_record, coco_figures, coco_metric, text_box_figures
from flmm_detseg.evaluation.coco_metric import box_figures, read_truth
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import DenseTargets, Sample

SAMPLES = make_dense_samples(24)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [box_record(sample, disturbed_objects(sample)) for sample in SAMPLES]


def coco_file(folder, areas: float | None = None, classes: tuple[str, ...] = CLASSES[::-1]) -> str:
    """The samples as a COCO file, categories and images in another order and with other ids."""
    ids = {name: 7 * number for number, name in enumerate(classes, start=1)}
    annotations = []
    for sample in SAMPLES:
        target = box_record(sample, disturbed_objects(sample))["target"]
        for k, (x0, y0, x1, y1) in enumerate(target["boxes_xyxy"]):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.meta["coco_image_id"],
                    "category_id": ids[CLASSES[target["labels"][k]]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": areas or target["areas"][k],
                    "iscrowd": int(target["crowd"][k]),
                    "segmentation": target["masks"][k],
                }
            )
    images = [{"id": s.meta["coco_image_id"], "height": 150, "width": 200, "file_name": "x"} for s in SAMPLES]
    images += [{"id": 5, "height": 10, "width": 10, "file_name": "not evaluated"}]
    annotations += [
        {"id": 9999, "image_id": 5, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    ]
    categories = [{"id": ids[name], "name": name} for name in classes] + [{"id": 99, "name": "dog"}]
    file = folder / "instances.json"
    file.write_text(
        json.dumps({"images": images[::-1], "annotations": annotations, "categories": categories})
    )
    return str(file)


def reference(folder, records: list[dict], kind: str) -> np.ndarray:
    """The protocol as its authors publish it: files in, ``stats`` out."""
    coco = COCO(coco_file(folder))
    ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
    found = []
    for sample, record in zip(SAMPLES, records, strict=True):
        for k, (x0, y0, x1, y1) in enumerate(record["boxes_xyxy"]):
            place = (
                {"bbox": [x0, y0, x1 - x0, y1 - y0]}
                if kind == "bbox"
                else {"segmentation": record["masks"][k]}
            )
            category = ids[CLASSES[record["labels"][k]]]
            found.append(
                {
                    "image_id": sample.meta["coco_image_id"],
                    "category_id": category,
                    "score": record["scores"][k],
                }
                | place
            )
    (folder / "found.json").write_text(json.dumps(found))
    evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), kind)
    evaluation.params.imgIds = [sample.meta["coco_image_id"] for sample in SAMPLES]
    evaluation.params.catIds = [ids[name] for name in CLASSES]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large"]


@pytest.mark.parametrize(("kind", "prefix"), [("bbox", ""), ("segm", "mask_")])
def test_figures_are_those_of_the_official_script(tmp_path, records, kind, prefix):
    expected = reference(tmp_path, records, kind)
    assert 0.1 < expected[0] < 0.9
    figures = coco_figures(records, CLASSES)
    assert [figures[prefix + name] for name in NAMES] == pytest.approx(list(expected), abs=1e-12)
    from_file = coco_figures(records, CLASSES, annotation_file=coco_file(tmp_path))
    assert [from_file[prefix + name] for name in NAMES] == pytest.approx(list(expected), abs=1e-12)


def test_areas_of_the_file_decide_about_sizes(tmp_path, records):
    figures = coco_figures(records, CLASSES, annotation_file=coco_file(tmp_path, areas=50.0**2))
    assert "AP_medium" in figures
    assert "AP_small" not in figures
    assert "AP_large" not in figures


def test_mmdet_agrees(tmp_path, records):
    install()
    from mmdet.evaluation import CocoMetric

    # mmdet takes the category ids in the order of the file, whatever the order of the names.
    metric = CocoMetric(ann_file=coco_file(tmp_path, classes=CLASSES), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": CLASSES}
    for sample, record in zip(SAMPLES, records, strict=True):
        found = disturbed_objects(sample)
        prediction = {
            "bboxes": found.bboxes,
            "scores": found.scores,
            "labels": found.labels,
            "masks": record["masks"],
        }
        metric.process(
            {},
            [{"pred_instances": prediction, "img_id": sample.meta["coco_image_id"], "ori_shape": (150, 200)}],
        )
    # mmdet evaluates every image of the file; the one beside ours has a target that cannot be found.
    metric._coco_api.dataset["annotations"].pop()
    metric._coco_api.createIndex()
    expected = metric.compute_metrics(metric.results)
    figures = coco_figures(records, CLASSES)
    for ours, theirs in (("AP", "mAP"), ("AP50", "mAP_50"), ("AP_small", "mAP_s"), ("AP_large", "mAP_l")):
        assert figures[ours] == pytest.approx(expected[f"bbox_{theirs}"], abs=1e-3)  # rounded by mmdet
        assert figures[f"mask_{ours}"] == pytest.approx(expected[f"segm_{theirs}"], abs=1e-3)


def test_faster_backend_agrees(records):
    pytest.importorskip("faster_coco_eval")
    expected = coco_figures(records, CLASSES, classwise=True)
    figures = coco_figures(records, CLASSES, classwise=True, backend="faster")
    assert figures == pytest.approx(expected, abs=1e-9)


def test_order_repetition_and_json_change_nothing(records):
    expected = coco_figures(records, CLASSES, classwise=True)
    again = json.loads(json.dumps([*records[::-1], records[3]]))
    assert coco_figures(again, CLASSES, classwise=True) == expected
    assert expected["AP"] == pytest.approx(np.mean([expected[f"AP/{name}"] for name in CLASSES]))
    assert text_box_figures(again) == text_box_figures(records)


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_no_detection_and_no_target(backend):
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    nothing = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0)
    )
    figures = coco_figures([box_record(sample, nothing) for sample in SAMPLES], CLASSES, backend=backend)
    assert figures["AP"] == figures["AR@100"] == 0
    empty = [sample for sample in SAMPLES if not len(sample.dense.labels)]
    assert len(empty) == 6
    found = [box_record(sample, disturbed_objects(sample)) for sample in empty]
    assert coco_figures(found, CLASSES, backend=backend).keys() == {"num_images", "num_boxes"}


def test_metric_in_a_loop_and_its_registration(records):
    metric = METRICS.build(ConfigDict(type="COCOBoxMetric", _scope_="flmm_detseg"))
    assert isinstance(metric, COCOBoxMetric)
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({"samples": SAMPLES}, [disturbed_objects(sample) for sample in SAMPLES])
    figures = metric.evaluate(len(SAMPLES))
    expected = coco_figures(records, CLASSES)
    assert figures == {f"coco/{name}": value for name, value in expected.items()}
    metric.process({"samples": SAMPLES}, [disturbed_objects(sample, with_scores=False) for sample in SAMPLES])
    assert metric.evaluate(len(SAMPLES))["coco/F1@0.5"] == text_box_figures(records)["F1@0.5"]


def sample_with(boxes: list, labels: list[int], crowd: list[bool] | None = None) -> Sample:
    dense = DenseTargets(
        boxes_xyxy=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.asarray(labels, dtype=np.int64),
        crowd=None if crowd is None else np.asarray(crowd),
    )
    return Sample("own/1", np.zeros((100, 100, 3), np.uint8), "", (), task="detection", dense=dense)


def said(boxes: list, labels: list[int]) -> InstanceData:
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def test_f1_by_hand():
    sample = sample_with([[0, 0, 10, 10], [50, 50, 70, 70], [80, 0, 90, 10]], [0, 0, 1])
    # IoU 0.8 with the first, 1.0 with the second, the third under a wrong name; one repeats the second.
    found = said([[0, 0, 10, 8], [50, 50, 70, 70], [50, 50, 70, 70], [80, 0, 90, 10]], [0, 0, 0, 2])
    figures = text_box_figures([box_record(sample, found)])
    assert figures["num_boxes"] == 4
    assert figures["precision@0.5"] == 2 / 4
    assert figures["recall@0.5"] == 2 / 3
    assert figures["F1@0.5"] == 4 / 7
    # 0.50 ... 0.80: two matches; 0.85, 0.90, 0.95: one.
    assert figures["recall@mean"] == pytest.approx((7 * 2 / 3 + 3 * 1 / 3) / 10)
    assert figures["F1@mean"] == pytest.approx((7 * 4 / 7 + 3 * 2 / 7) / 10)


def test_a_greedy_choice_does_not_spoil_the_matching():
    # The first prediction overlaps both targets, the second only the one that the first likes best.
    sample = sample_with([[0, 0, 10, 10], [0, 2, 10, 12]], [0, 0])
    found = said([[0, 0.5, 10, 10.5], [0, -3, 10, 7]], [0, 0])
    assert text_box_figures([box_record(sample, found)])["recall@0.5"] == 1


def test_predictions_inside_crowds_do_not_count():
    sample = sample_with([[0, 0, 50, 50], [60, 60, 80, 80]], [0, 0], [True, False])
    found = said([[5, 5, 10, 10], [20, 20, 30, 30], [60, 60, 80, 80], [60, 0, 70, 10]], [0, 0, 0, 0])
    figures = text_box_figures([box_record(sample, found)])
    assert figures["precision@0.5"] == 1 / 2
    assert figures["recall@0.5"] == 1
    other_class = said([[5, 5, 10, 10], [60, 60, 80, 80]], [1, 0])
    assert text_box_figures([box_record(sample, other_class)])["precision@0.5"] == 1 / 2


def test_matching_is_the_best_of_all_matchings():
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = rng.uniform(0, 20, (7, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (7, 2))], axis=1).astype(np.float32)
        targets, found = boxes[:4], boxes[4:]
        low, high = (
            np.maximum(targets[:, None, :2], found[:, :2]),
            np.minimum(targets[:, None, 2:], found[:, 2:]),
        )
        overlap = (high - low).clip(0).prod(2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        hits = overlap / (areas[:4, None] + areas[4:] - overlap) >= 0.5
        best = max(sum(hits[t, p] for p, t in enumerate(order)) for order in permutations(range(4), 3))
        record = box_record(sample_with(targets.tolist(), [0] * 4), said(found.tolist(), [0] * 3))
        assert text_box_figures([record])["recall@0.5"] == best / 4


def test_silence_about_nothing_has_no_figure():
    figures = text_box_figures([box_record(sample_with([], []), said([], []))])
    assert figures == {"num_images": 1, "num_boxes": 0}


def test_unusable_input(tmp_path, records, monkeypatch):
    sample = SAMPLES[0]
    with pytest.raises(DataError, match="dense/000: it has no boxes"):
        box_record(Sample("dense/000", sample.image, "", ()), disturbed_objects(sample))
    found = disturbed_objects(sample)
    broken = InstanceData(bboxes=found.bboxes * torch.nan, labels=found.labels)
    with pytest.raises(RunError, match="dense/000: predicted bboxes hold NaN"):
        box_record(sample, broken)
    with pytest.raises(RunError, match=r"predicted masks have shape \(\d+, 3, 3\)"):
        box_record(
            sample, InstanceData(bboxes=found.bboxes, labels=found.labels, masks=found.masks[:, :3, :3])
        )
    without_scores = [box_record(s, disturbed_objects(s, with_scores=False)) for s in SAMPLES]
    with pytest.raises(DataError, match="dense/000: its boxes have no scores"):
        coco_figures(without_scores, CLASSES)
    some_masks = [*records[:5], *(box_record(s, disturbed_objects(s, with_masks=False)) for s in SAMPLES[5:])]
    with pytest.raises(DataError, match="boxes without masks"):
        coco_figures(some_masks, CLASSES)
    with pytest.raises(ConfigError, match="no category 'cube'"):
        coco_figures(records, (*CLASSES, "cube"), annotation_file=coco_file(tmp_path))
    with pytest.raises(ConfigError, match="needs `classes`"):
        coco_figures(records, annotation_file=coco_file(tmp_path))
    unknown = [{**records[0], "image_id": 77}]
    with pytest.raises(DataError, match="dense/000: image 77 is not in"):
        coco_figures(unknown, CLASSES, annotation_file=coco_file(tmp_path))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="list.json: expected an object with images"):
        coco_figures(records, CLASSES, annotation_file=tmp_path / "list.json")
    with pytest.raises(ConfigError, match="`backend` is 'torch'; allowed: pycocotools, faster"):
        COCOBoxMetric(backend="torch")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="pip install faster-coco-eval"):
        COCOBoxMetric(backend="faster")


# Files of other makers: the first has nothing left out.
OBJECTS = [([5, 5, 10, 10], 0), ([20, 10, 10, 10], 1)]


def foreign_file(folder, change=lambda content: None) -> str:
    annotations = [
        {
            "id": k + 1, "image_id": 1, "category_id": k + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for k, (box, _) in enumerate(OBJECTS)
        for x, y, w, h in [box]
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "cup"}],
    }
    change(content)
    (folder / "foreign.json").write_text(json.dumps(content))
    return str(folder / "foreign.json")


def perfect(image_id=1) -> dict:
    """A record that finds both objects of :func:`foreign_file`, with masks."""
    boxes = [[x, y, x + w, y + h] for (x, y, w, h), _ in OBJECTS]
    masks = np.zeros((2, 30, 40), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    labels = np.asarray([label for _, label in OBJECTS])
    dense = DenseTargets(boxes_xyxy=np.asarray(boxes, dtype=np.float32), labels=labels, masks=masks)
    sample = Sample(
        "own/1",
        np.zeros((30, 40, 3), np.uint8),
        "",
        (),
        task="detection",
        dense=dense,
        meta={"coco_image_id": image_id},
    )
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.from_numpy(labels),
        scores=torch.tensor([0.9, 0.8]),
        masks=torch.from_numpy(masks),
    )
    return box_record(sample, found)


def of_each(key: str, value) -> object:
    def change(content: dict) -> None:
        for entry in content["annotations"]:
            if value is ...:
                del entry[key]
            else:
                entry[key] = value(entry) if callable(value) else value

    return change


def text_image_ids(content: dict) -> None:
    content["images"][0]["id"] = "1"
    of_each("image_id", "1")(content)


BACKEND_NAMES = [
    "pycocotools",
    pytest.param(
        "faster",
        marks=pytest.mark.skipif(not importlib.util.find_spec("faster_coco_eval"), reason="optional"),
    ),
]


@pytest.mark.case("data/02_annotation_id_0_makes_ap_0")
@pytest.mark.case("data/03_annotation_file_without_area_or_iscrowd")
@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize(
    "change",
    [
        of_each("id", lambda entry: entry["id"] - 1),
        of_each("id", lambda entry: -entry["id"]),
        of_each("id", lambda entry: f"x{entry['id']}"),
        of_each("id", lambda entry: 10**15 + entry["id"]),
        of_each("area", ...),
        of_each("area", None),
        of_each("iscrowd", ...),
        of_each("iscrowd", None),
        of_each("iscrowd", False),
        of_each("category_id", lambda entry: float(entry["category_id"])),
        text_image_ids,
        lambda content: content["images"].insert(0, {"id": "zebra.jpg", "file_name": "z", "height": 3, "width": 3}),
        lambda content: content["categories"].insert(0, {"id": 0, "name": "group"}),
    ],
)  # fmt: skip
def test_a_perfect_prediction_is_perfect_against_a_foreign_file(tmp_path, change, backend):
    figures = coco_figures(
        [perfect()], ("mug", "cup"), annotation_file=foreign_file(tmp_path, change), backend=backend
    )
    assert [figures[key] for key in ("AP", "AR@100", "mask_AP")] == pytest.approx([1, 1, 1])


@pytest.mark.case("data/03_annotation_file_without_area_or_iscrowd")
@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_no_mask_is_no_mask(tmp_path, backend, caplog):
    """Label Studio writes boxes and polygons into one file; a missing mask must not look like a wrong one."""
    file = foreign_file(tmp_path, lambda content: content["annotations"][0].update(segmentation=[]))
    figures = coco_figures([perfect()], ("mug", "cup"), annotation_file=file, backend=backend)
    assert figures["AP"] == pytest.approx(1)
    assert "mask_AP" not in figures


def test_a_missing_area_is_that_of_the_mask(tmp_path):
    def thin_triangle(content: dict) -> None:
        of_each("area", ...)(content)
        content["images"][0].update(height=200, width=200)
        for entry in content[
            "annotations"
        ]:  # 100 x 100 / 2 pixels, in a box that is large for COCO (> 96 x 96)
            entry.update(bbox=[10, 10, 100, 100], segmentation=[[10, 10, 110, 10, 10, 110]])

    truth = read_truth(foreign_file(tmp_path, thin_triangle))
    areas = [entry["area"] for entry in truth.dataset["annotations"]]
    coco = COCO()
    coco.dataset = truth.dataset
    coco.createIndex()
    assert areas == [coco.annToMask(entry).sum() for entry in truth.dataset["annotations"]]
    assert 4500 < areas[0] < 5500


@pytest.mark.case("data/05_every_object_is_a_crowd")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (of_each("iscrowd", "0"), "annotation 1: .*`iscrowd` is '0'; it must be 0 or 1"),
        (of_each("area", "100"), "annotation 1: .*`area` is '100', not a finite number"),
        (of_each("area", float("nan")), "annotation 1: .*`area` is nan, not a finite number"),
        (of_each("bbox", [1, 2, float("inf"), 4]), "annotation 1: `bbox` .* is not"),
        (of_each("bbox", [1, 2, 10**400, 4]), "annotation 1: `bbox` .* is not"),
        (of_each("id", 7), "annotation 7: its id occurs twice"),
        (of_each("id", None), "annotations.0.: .*`id` is None"),
        (of_each("image_id", "2"), "annotation 1: image '2' is not in `images`"),
        (of_each("category_id", 9), "annotation 1: category 9 is not in `categories`"),
        (of_each("segmentation", [[1, 2, 3]]), "annotation 1: mask: a polygon must be"),
        (of_each("segmentation", {"size": [30, 40], "counts": [3]}), "annotation 1: mask: RLE counts sum to 3"),
        (lambda content: content["images"][0].update(height=1e999), "image 1: .*`height` is inf"),
        (lambda content: content["images"].append(content["images"][0]), r"images\[1\]: image id 1 occurs twice"),
        (lambda content: content.update(categories=[]), "`categories` is empty"),
    ],
)  # fmt: skip
def test_a_faulty_annotation_file_is_one_clear_error(tmp_path, change, match):
    file = foreign_file(tmp_path, change)
    with pytest.raises(DataError, match=f"foreign.json: {match}"):
        coco_figures([perfect()], ("mug", "cup"), annotation_file=file)
    with pytest.raises(DataError, match=match):  # before the first pass, not after it
        COCOBoxMetric(annotation_file=file)


@pytest.mark.case("data/05_every_object_is_a_crowd")
def test_crowds_only_are_reported(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(coco_metric, "print_log", lambda text, **_: logged.append(text))
    figures = coco_figures(
        [perfect()], ("mug", "cup"), annotation_file=foreign_file(tmp_path, of_each("iscrowd", 1))
    )
    assert figures == {"num_images": 1, "num_boxes": 2}
    assert any("2 are there, each of them a crowd" in text for text in logged)


def test_one_image_without_scores_is_an_error_not_another_figure(records):
    mixed = [*records[:3], box_record(SAMPLES[3], disturbed_objects(SAMPLES[3], with_scores=False))]
    with pytest.raises(DataError, match="dense/003: its boxes have no scores"):
        box_figures(mixed, CLASSES)
