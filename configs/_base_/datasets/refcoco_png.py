"""RefCOCO, RefCOCO+, RefCOCOg and PNG: the training mix and the evaluation sets of F-LMM. Layout: data/README.md."""

from mmengine.dataset import DefaultSampler

from flmm_detseg.datasets import ConcatMix, EpochSampler, PNGDataset, RefCOCODataset, collate_samples
from flmm_detseg.evaluation import RefSegMetric

_refcoco = dict(
    type=RefCOCODataset,
    refs_file="data/refcoco/refs(unc).p",
    instances_file="data/refcoco/instances.json",
    image_dir="data/coco/train2014",
    sentences="first",
    layout="split",
)
_refcoco_plus = dict(
    _refcoco, refs_file="data/refcoco+/refs(unc).p", instances_file="data/refcoco+/instances.json"
)
_refcocog = dict(
    _refcoco, refs_file="data/refcocog/refs(umd).p", instances_file="data/refcocog/instances.json"
)
refcoco_train = dict(_refcoco, split="train", sentences="random", layout="concat", name="refcoco")
refcoco_plus_train = dict(_refcoco_plus, split="train", sentences="random", layout="concat", name="refcoco+")
refcocog_train = dict(_refcocog, split="train", sentences="random", layout="concat", name="refcocog")
png_train = dict(
    type=PNGDataset,
    narratives_file="data/coco/annotations/png_coco_train2017.json",
    panoptic_json="data/coco/annotations/panoptic_train2017.json",
    panoptic_dir="data/coco/annotations/panoptic_train2017",
    image_dir="data/coco/train2017",
)
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
    dataset=dict(type=ConcatMix, datasets=[png_train, refcoco_train, refcoco_plus_train, refcocog_train]),
)

refcoco_eval = dict(
    refcoco_val=dict(**_refcoco, split="val", name="refcoco"),
    refcoco_testA=dict(**_refcoco, split="testA", name="refcoco"),
    refcoco_testB=dict(**_refcoco, split="testB", name="refcoco"),
    refcoco_plus_val=dict(**_refcoco_plus, split="val", name="refcoco+"),
    refcoco_plus_testA=dict(**_refcoco_plus, split="testA", name="refcoco+"),
    refcoco_plus_testB=dict(**_refcoco_plus, split="testB", name="refcoco+"),
    refcocog_val=dict(**_refcocog, split="val", name="refcocog"),
    refcocog_test=dict(**_refcocog, split="test", name="refcocog"),
)
png_eval = dict(
    png_val=dict(
        type=PNGDataset,
        narratives_file="data/coco/annotations/png_coco_val2017.json",
        panoptic_json="data/coco/annotations/panoptic_val2017.json",
        panoptic_dir="data/coco/annotations/panoptic_val2017",
        image_dir="data/coco/val2017",
    )
)

# Validation while training: one text per image is enough to see whether the run makes progress.
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=collate_samples),
    dataset=dict(_refcoco, split="val", layout="concat", name="refcoco"),
)
val_evaluator = dict(type=RefSegMetric)
