"""TinyWorld's reasoning set (flmm-detseg data tinyworld --out data/tinyworld --reason 2500 150 500)."""

from mmengine.config import read_base

with read_base():
    from .tinyworld_detseg import segmentation_train
    from .tinyworld_refcoco_png import refcoco_split_train

from flmm_detseg.datasets import ClassPrompts, ReasonSegDataset, SegAnswers

reason_train = dict(
    type=ReasonSegDataset,
    folder="data/tinyworld/reason_seg_v2/train",
    request=False,
    explained_share=0.25,
)
# Classes and referring expressions of the world as questions; some of the classes are not there.
classes_train = dict(type=ClassPrompts, dataset=segmentation_train, absent_share=0.3)
refer_train = dict(type=SegAnswers, dataset=refcoco_split_train)
_held_out = dict(type=ReasonSegDataset, queries="first", request=False)
reason_eval = dict(
    reason_val=dict(_held_out, folder="data/tinyworld/reason_seg_v2/val"),
    reason_test=dict(_held_out, folder="data/tinyworld/reason_seg_v2/test"),
)
