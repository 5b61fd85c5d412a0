"""Validation while training: MMEngine's own loop and evaluator on samples of any task that has a prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import ValLoop
from multi_task_parts import HEADS, dense_sample, make_model, question
from tiny import make_sample
from torch.utils.data import DataLoader, Dataset

from flmm_detseg.datasets import collate_samples
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import (
    COCOBoxMetric,
    SemSegMetric,
    box_record,
    coco_figures,
    semseg_figures,
    semseg_record,
)
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Prediction, Sample


class Listed(Dataset[Sample]):
    def __init__(self, samples: list[Sample], **metainfo: Any) -> None:
        self.samples, self.metainfo = samples, metainfo

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@pytest.fixture(scope="module")
def model() -> GroundingLMM:
    model = make_model().eval()
    model.heads["detection"].score_threshold = 0.0  # an untrained head is sure of nothing
    return model


def validate(model: GroundingLMM, dataset: Listed, metric: Any) -> dict[str, float]:
    runner = SimpleNamespace(
        model=model, visualizer=SimpleNamespace(), call_hook=lambda *args, **kwargs: None
    )
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate_samples)
    return ValLoop(runner, loader, Evaluator([metric])).run()


def test_boxes_are_validated_with_cocos_figures(model):
    samples = [dense_sample(index, "detection") for index in range(3)]
    found = validate(model, Listed(samples, classes=("a", "b")), COCOBoxMetric())
    records = [box_record(s, p) for s in samples for p in model.detect([s])]
    assert found["coco/num_boxes"] > 0
    assert found["coco/num_images"] == 3
    expected = coco_figures(records, ("a", "b"))
    assert found["coco/AP"] == pytest.approx(expected["AP"], abs=1e-6)
    assert {name.removeprefix("coco/") for name in found} == set(expected)


def test_label_maps_are_validated_with_miou(model):
    samples = [dense_sample(index, "segmentation") for index in range(3)]
    found = validate(model, Listed(samples, semantic_classes=("a", "b", "c")), SemSegMetric())
    expected = semseg_figures([semseg_record(s, model.segment([s])[0], 3) for s in samples], 3)
    assert found["semseg/mIoU"] == pytest.approx(expected["mIoU"], abs=1e-3)
    assert found["semseg/aAcc"] > 0


def test_a_batch_of_several_tasks_keeps_its_order(model):
    samples = [
        dense_sample(0, "segmentation"),
        make_sample(1),
        dense_sample(2, "detection"),
        dense_sample(3, "segmentation"),
    ]
    first, phrase, boxes, last = model(samples, mode="predict")
    assert isinstance(phrase, Prediction)
    assert phrase.record_id == "tiny/1"
    assert {"bboxes", "scores", "labels"} <= set(boxes.keys())
    alone = [model.segment([sample])[0] for sample in (samples[0], samples[3])]
    for one, other in zip((first, last), alone, strict=True):
        assert (one == other).float().mean() > 0.99
    assert not torch.equal(*alone)


def test_what_cannot_be_validated_is_named(model):
    with pytest.raises(ConfigError, match=r"tiny/0: samples of task 'vqa' cannot validate.*eval_vqa"):
        model([question()], mode="predict")
    detector = make_model(heads={"detection": HEADS["detection"]})
    with pytest.raises(ConfigError, match="the model has no head for task 'segmentation'"):
        detector([dense_sample(0, "segmentation")], mode="predict")
