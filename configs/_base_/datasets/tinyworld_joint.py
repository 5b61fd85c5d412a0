"""TinyWorld's objects and questions as whole answers, in the tiny LLaVA's own words."""

from mmengine.config import read_base

with read_base():
    from .tinyworld_detseg import coco_eval, detection_train, vqa_eval, vqa_train

from flmm_detseg.datasets import JointDataset
from flmm_detseg.language import JointTemplate

_whole = dict(
    type=JointDataset,
    sections=("answer", "detections", "segmentations"),
    mask_form="seg",
    text_format=dict(type=JointTemplate, numbers="data/models/tiny_llava", words=True, mask_token="[SEG]"),
)
joint_train = dict(
    _whole, dataset=dict(detection_train, with_masks=True), answers=dict(vqa_train, turns="all")
)
# One question an image: drawn once, always the same.
joint_eval = dict(joint_val=dict(_whole, dataset=coco_eval["coco_val"], answers=vqa_eval["vqa_val"]))
