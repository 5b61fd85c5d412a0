"""COCO instances, ADE20K and LLaVA-Instruct; questions about images of RefCOCO's and COCO's evaluation are left out."""

from flmm_detseg.datasets import COCOInstancesDataset, LLaVAInstructDataset, SemanticMapsDataset

detection_train = dict(
    type=COCOInstancesDataset,
    ann_file="data/coco/annotations/instances_train2017.json",
    image_dir="data/coco/train2017",
)
segmentation_train = dict(
    type=SemanticMapsDataset,
    label_dir="data/ade/annotations/training",
    image_dir="data/ade/images/training",
    classes="ade20k",
    reduce_zero_label=True,
)
vqa_train = dict(
    type=LLaVAInstructDataset,
    file="data/llava/llava_instruct_150k.json",
    image_dir="data/coco/train2017",
    turns="random",
    exclude_image_ids_file=["data/refcoco/refs(unc).p", "data/coco/annotations/instances_val2017.json"],
)
coco_eval = dict(
    coco_val=dict(
        type=COCOInstancesDataset,
        ann_file="data/coco/annotations/instances_val2017.json",
        image_dir="data/coco/val2017",
        with_masks=True,
    )
)
semseg_eval = dict(
    semseg_val=dict(
        type=SemanticMapsDataset,
        label_dir="data/ade/annotations/validation",
        image_dir="data/ade/images/validation",
        classes="ade20k",
        reduce_zero_label=True,
    )
)
vqa_eval = dict(
    vqa_val=dict(
        type=LLaVAInstructDataset,
        file="data/llava/vqav2_val.json",
        image_dir="data/coco/val2014",
        turns="all",
    )
)
