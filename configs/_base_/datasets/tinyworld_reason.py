"""TinyWorld's reasoning set (flmm-detseg data tinyworld --out data/tinyworld --reason 2500 150 500).

Evaluated by `flmm-detseg evaluate reason`, `evaluate refcoco --generate` and `evaluate gcg`.
"""

from mmengine.config import read_base

with read_base():
    from .tinyworld_detseg import segmentation_train
    from .tinyworld_refcoco_png import png_eval, refcoco_eval, refcoco_split_train

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
    # Every answer that has a reason is asked for it; a file without one is asked as above.
    reason_explained=dict(
        _held_out, folder="data/tinyworld/reason_seg_v2/val", explained_share=1.0, name="explained"
    ),
)
# Captions with a mask for each phrase. The mix does not train them.
gcg_eval = dict(gcg_val=dict(type=SegAnswers, dataset=png_eval["png_val"], form="captions", wordings="first"))
