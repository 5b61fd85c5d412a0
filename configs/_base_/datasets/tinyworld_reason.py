"""TinyWorld's reasoning set (flmm-detseg data tinyworld --out data/tinyworld --reason 2500 150 500)."""

from flmm_detseg.datasets import ReasonSegDataset

reason_train = dict(
    type=ReasonSegDataset,
    folder="data/tinyworld/reason_seg_v2/train",
    request=False,
    explained_share=0.25,
)
_held_out = dict(type=ReasonSegDataset, queries="first", request=False)
reason_eval = dict(
    reason_val=dict(_held_out, folder="data/tinyworld/reason_seg_v2/val"),
    reason_test=dict(_held_out, folder="data/tinyworld/reason_seg_v2/test"),
)
