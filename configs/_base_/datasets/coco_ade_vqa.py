"""COCO instances, ADE20K and LLaVA-Instruct, without the images that RefCOCO(+/g), COCO, PNG and VQAv2 are evaluated on.

Answers are evaluated on the questions of VQAv2 about val2017: most of val2014 is in train2017, which is learned here.
"""

from flmm_detseg.datasets import (
    COCOInstancesDataset,
    JointDataset,
    LLaVAInstructDataset,
    QuestionDataset,
    SemanticMapsDataset,
)

# Of these files the images of all splits but train are left out.
referring_sets = ["data/refcoco/refs(unc).p", "data/refcoco+/refs(unc).p", "data/refcocog/refs(umd).p"]
detection_train = dict(
    type=COCOInstancesDataset,
    ann_file="data/coco/annotations/instances_train2017.json",
    image_dir="data/coco/train2017",
    exclude_image_ids_file=referring_sets,
)
# The same boxes in words: an answer of the LMM. The largest 30 fit into LLaVA-1.5's context beside the image.
joint_train = dict(type=JointDataset, dataset=detection_train, sections=("detections",), max_boxes=30)
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
    exclude_image_ids_file=[*referring_sets, "data/coco/annotations/instances_val2017.json"],
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
        type=QuestionDataset,
        file="data/vqav2/val2017.jsonl",
        image_dir="data/coco/val2017",
        prompt_suffix="Answer the question using a single word or phrase.",
    )
)
