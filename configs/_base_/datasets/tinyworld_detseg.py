"""TinyWorld's boxes, label maps and questions (python tools/make_tinyworld.py --out data/tinyworld --images 2500)."""

from flmm_detseg.datasets import COCOInstancesDataset, LLaVAInstructDataset, SemanticMapsDataset

detection_train = dict(
    type=COCOInstancesDataset,
    ann_file="data/tinyworld/coco/annotations/instances_train2017.json",
    image_dir="data/tinyworld/coco/train2017",
)
segmentation_train = dict(
    type=SemanticMapsDataset,
    label_dir="data/tinyworld/ade/annotations/training",
    image_dir="data/tinyworld/coco/train2017",
    classes="tinyworld",
    reduce_zero_label=True,
)
vqa_train = dict(
    type=LLaVAInstructDataset,
    file="data/tinyworld/llava/train.json",
    image_dir="data/tinyworld/coco",
    turns="random",
)
coco_eval = dict(
    coco_val=dict(
        type=COCOInstancesDataset,
        ann_file="data/tinyworld/coco/annotations/instances_val2017.json",
        image_dir="data/tinyworld/coco/val2017",
        with_masks=True,
    )
)
semseg_eval = dict(
    semseg_val=dict(
        type=SemanticMapsDataset,
        label_dir="data/tinyworld/ade/annotations/validation",
        image_dir="data/tinyworld/coco/val2017",
        classes="tinyworld",
        reduce_zero_label=True,
    )
)
vqa_eval = dict(
    vqa_val=dict(
        type=LLaVAInstructDataset,
        file="data/tinyworld/llava/val.json",
        image_dir="data/tinyworld/coco",
        turns="all",
    )
)
