"""Samples with boxes, masks and label maps, and predictions that resemble them, for the tests of metrics and tools."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from mmengine.structures import InstanceData

from flmm_detseg.structures import DenseTargets, Sample

CLASSES = ("circle", "square", "star")


def make_dense_samples(num: int, seed: int = 0, image_size: tuple[int, int] = (150, 200)) -> list[Sample]:
    """Images with 0..6 objects of three classes and many sizes; some are crowds; every fourth image is empty."""
    rng = np.random.default_rng(seed)
    height, width = image_size
    samples = []
    for index in range(num):
        boxes, masks = [], []
        for _ in range(0 if index % 4 == 3 else int(rng.integers(1, 7))):
            x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
            side = int(rng.integers(8, 150))
            x1, y1 = min(width, x0 + side), min(height, y0 + side)
            mask = np.zeros(image_size, dtype=bool)
            mask[y0:y1, x0:x1] = True
            mask[y0 : y0 + (y1 - y0) // 2, x0 : x0 + (x1 - x0) // 3] = False
            boxes.append((x0, y0, x1, y1))
            masks.append(mask)
        labels = rng.integers(0, len(CLASSES), len(boxes))
        semantic = np.full(image_size, len(CLASSES), dtype=np.uint8)
        for mask, label in zip(masks, labels, strict=True):
            semantic[mask] = label
        semantic[:5, :7] = 255
        dense = DenseTargets(
            boxes_xyxy=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            labels=labels.astype(np.int64),
            masks=np.stack(masks) if masks else np.zeros((0, *image_size), dtype=bool),
            crowd=rng.random(len(boxes)) < 0.15,
            semantic=semantic,
        )
        image = np.zeros((*image_size, 3), dtype=np.uint8)
        samples.append(
            Sample(
                f"dense/{index:03d}", image, "", (), image_id=f"image-{index}", task="detection", dense=dense,
                meta={"coco_image_id": 1000 + index},
            )
        )  # fmt: skip
    return samples


def record_rng(record_id: str) -> np.random.Generator:
    """Random numbers that belong to a record, wherever and whenever it is predicted."""
    return np.random.default_rng(list(hashlib.sha256(record_id.encode()).digest()[:4]))


def disturbed_objects(sample: Sample, with_scores: bool = True, with_masks: bool = True) -> InstanceData:
    """The sample's objects moved, some left out, some doubled or of another class, and some that are not there."""
    rng = record_rng(sample.record_id)
    height, width = sample.image_size
    boxes, labels, scores = [], [], []
    for box, label in zip(sample.dense.boxes_xyxy, sample.dense.labels, strict=True):
        for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            boxes.append(box + rng.normal(0, 3, 4))
            labels.append(label if rng.random() < 0.85 else (label + 1) % len(CLASSES))
            scores.append(rng.uniform(0.3, 1))
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(0, width - 30), rng.uniform(0, height - 30)
        boxes.append((x, y, x + rng.uniform(5, 30), y + rng.uniform(5, 30)))
        labels.append(int(rng.integers(len(CLASSES))))
        scores.append(rng.uniform(0, 0.7))
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4).clip(0, [width, height, width, height])
    result = InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.tensor(labels, dtype=torch.int64))
    if with_scores:
        result.scores = torch.tensor(scores, dtype=torch.float32)
    if with_masks:
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        result.masks = masks
    return result


def disturbed_map(sample: Sample, num_classes: int = len(CLASSES) + 1) -> torch.Tensor:
    """The sample's label map moved by some pixels, with a patch of a wrong class."""
    rng = record_rng(sample.record_id)
    labels = np.where(sample.dense.semantic == 255, 0, sample.dense.semantic).astype(np.int64)
    labels = np.roll(labels, rng.integers(-4, 5, 2), axis=(0, 1))
    y, x = int(rng.integers(0, 60)), int(rng.integers(0, 80))
    labels[y : y + 30, x : x + 30] = int(rng.integers(num_classes))
    return torch.from_numpy(labels)
