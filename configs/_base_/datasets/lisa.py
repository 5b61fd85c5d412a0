"""What LISA learns from (arXiv 2308.00692): classes, referring expressions, conversations and reasoning, 9 : 3 : 3 : 1.

Within a group each set comes equally often, as published. Images are not left out: ReasonSeg's are of other sources than
COCO's, but figures of RefCOCO after this mix are not comparable with those of the LLaVA-Det-Seg recipes. Where a set is,
under which licence and in which layout: docs/data_guide.md. Nobody has run this mix here.
"""

from flmm_detseg.datasets import (
    ClassPrompts,
    COCOInstancesDataset,
    GranDfDataset,
    GRefCOCODataset,
    LLaVAInstructDataset,
    MultiTaskMix,
    ReasonSegDataset,
    RefCOCODataset,
    SegAnswers,
    SemanticMapsDataset,
    WeightedMix,
)

ade = dict(
    type=SemanticMapsDataset,
    label_dir="data/ade/annotations/training",
    image_dir="data/ade/images/training",
    classes="ade20k",
    reduce_zero_label=True,
)
# mmseg's conversion, whose pixels number the 171 classes.
cocostuff = dict(
    type=SemanticMapsDataset,
    label_dir="data/cocostuff/train2017",
    image_dir="data/coco/train2017",
    classes="cocostuff",
    label_suffix="_labelTrainIds.png",
)
mapillary = dict(
    type=SemanticMapsDataset,
    label_dir="data/mapillary/training/v2.0/labels",
    image_dir="data/mapillary/training/images",
    classes="data/mapillary/config_v2.0.json",
)
paco = dict(
    type=COCOInstancesDataset,
    ann_file="data/paco/paco_lvis_v1_train.json",
    image_dir="data/coco",
    with_masks=True,
    keep_empty=False,
)
pascal_part = dict(
    type=COCOInstancesDataset,
    ann_file="data/pascal_part/train.json",
    image_dir="data/pascal_part/VOCdevkit/VOC2010/JPEGImages",
    with_masks=True,
    keep_empty=False,
)
class_train = dict(
    type=WeightedMix,
    datasets=[
        dict(type=ClassPrompts, dataset=ade),
        dict(type=ClassPrompts, dataset=cocostuff, leave_out="-"),
        dict(type=ClassPrompts, dataset=mapillary),
        dict(type=ClassPrompts, dataset=paco),
        dict(type=ClassPrompts, dataset=pascal_part),
    ],
    weights=[1, 1, 1, 1, 1],
)
refcoco = dict(
    type=RefCOCODataset,
    refs_file="data/refcoco/refs(unc).p",
    instances_file="data/refcoco/instances.json",
    image_dir="data/coco/train2014",
    layout="split",
)
refcoco_plus = dict(
    refcoco, refs_file="data/refcoco+/refs(unc).p", instances_file="data/refcoco+/instances.json"
)
refcocog = dict(refcoco, refs_file="data/refcocog/refs(umd).p", instances_file="data/refcocog/instances.json")
refclef = dict(
    refcoco,
    refs_file="data/refclef/refs(unc).p",
    instances_file="data/refclef/instances.json",
    image_dir="data/saiapr_tc-12",
)
refer_train = dict(
    type=WeightedMix,
    datasets=[
        dict(type=SegAnswers, dataset=refclef),
        dict(type=SegAnswers, dataset=refcoco),
        dict(type=SegAnswers, dataset=refcoco_plus),
        dict(type=SegAnswers, dataset=refcocog),
    ],
    weights=[1, 1, 1, 1],
)
vqa_train = dict(
    type=LLaVAInstructDataset,
    file="data/llava/llava_instruct_150k.json",
    image_dir="data/coco/train2017",
    turns="random",
)
reason_train = dict(
    type=ReasonSegDataset,
    folder="data/reason_seg/train",
    explanations_file="data/reason_seg/explanatory/train.json",
    text_share=0.1,
    explained_share=0.5,
)
lisa_train = dict(
    type=MultiTaskMix,
    datasets=dict(classes=class_train, refer=refer_train, vqa=vqa_train, reason=reason_train),
    ratios=dict(classes=9, refer=3, vqa=3, reason=1),
)
reason_eval = dict(
    reason_val=dict(type=ReasonSegDataset, folder="data/reason_seg/val", queries="first"),
    reason_test=dict(type=ReasonSegDataset, folder="data/reason_seg/test", queries="first"),
)
# Asked for by `evaluate refcoco --generate`: all sentences, as LISA's figures are.
refcoco_eval = dict(
    refcoco_val=dict(refcoco, split="val", sentences="all"),
    refcoco_testA=dict(refcoco, split="testA", sentences="all"),
    refcoco_testB=dict(refcoco, split="testB", sentences="all"),
    refcoco_plus_val=dict(refcoco_plus, split="val", sentences="all", name="refcoco+"),
    refcoco_plus_testA=dict(refcoco_plus, split="testA", sentences="all", name="refcoco+"),
    refcoco_plus_testB=dict(refcoco_plus, split="testB", sentences="all", name="refcoco+"),
    refcocog_val=dict(refcocog, split="val", sentences="all", name="refcocog"),
    refcocog_test=dict(refcocog, split="test", sentences="all", name="refcocog"),
)
# Captions with masks (GLaMM's task), which this mix does not train.
gcg_eval = dict(
    gcg_val=dict(
        type=SegAnswers,
        dataset=dict(
            type=GranDfDataset,
            file="data/grandf/GranDf_HA_GCG_val.json",
            image_dir="data/grandf/GranDf_HA_images/val",
        ),
        form="captions",
        wordings="first",
    )
)
_grefcoco = dict(
    type=GRefCOCODataset,
    refs_file="data/grefcoco/grefs(unc).json",
    instances_file="data/grefcoco/instances.json",
    image_dir="data/coco/train2014",
    sentences="all",
)
grefcoco_eval = dict(
    grefcoco_val=dict(_grefcoco, split="val"),
    grefcoco_testA=dict(_grefcoco, split="testA"),
    grefcoco_testB=dict(_grefcoco, split="testB"),
)
