"""TinyWorld's RefCOCO and PNG (python tools/make_tinyworld.py --out data/tinyworld --images 2500 --seed 0)."""

from mmengine.dataset import DefaultSampler

from flmm_detseg.datasets import EpochSampler, PNGDataset, RefCOCODataset, WeightedMix, collate_samples
from flmm_detseg.evaluation import RefSegMetric

_refcoco = dict(
    type=RefCOCODataset,
    refs_file="data/tinyworld/refcoco/refs(unc).p",
    instances_file="data/tinyworld/refcoco/instances.json",
    image_dir="data/tinyworld/coco",
    sentences="first",
    layout="split",
    name="refcoco",
)
refcoco_train = dict(_refcoco, split="train", sentences="random", layout="concat")
# One expression a text as well, as it is evaluated.
refcoco_split_train = dict(refcoco_train, layout="split", name="refcoco_split")
png_train = dict(
    type=PNGDataset,
    narratives_file="data/tinyworld/coco/annotations/png_coco_train2017.json",
    panoptic_json="data/tinyworld/coco/annotations/panoptic_train2017.json",
    panoptic_dir="data/tinyworld/coco/annotations/panoptic_train2017",
    image_dir="data/tinyworld/coco/train2017",
)
train_dataloader = dict(
    batch_size=7,
    num_workers=0,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
    # Mostly one expression a text: an iteration's time goes into phrases, and a caption has seven.
    dataset=dict(
        type=WeightedMix, datasets=[png_train, refcoco_train, refcoco_split_train], weights=[1, 1, 8]
    ),
)

refcoco_eval = dict(
    refcoco_val=dict(**_refcoco, split="val"),
    refcoco_testA=dict(**_refcoco, split="testA"),
    refcoco_testB=dict(**_refcoco, split="testB"),
)
png_eval = dict(
    png_val=dict(
        type=PNGDataset,
        narratives_file="data/tinyworld/coco/annotations/png_coco_val2017.json",
        panoptic_json="data/tinyworld/coco/annotations/panoptic_val2017.json",
        panoptic_dir="data/tinyworld/coco/annotations/panoptic_val2017",
        image_dir="data/tinyworld/coco/val2017",
    )
)

# Validation while training: one text per image is enough to see whether the run makes progress.
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=collate_samples),
    dataset=dict(_refcoco, split="val", layout="concat"),
)
val_evaluator = dict(type=RefSegMetric)
