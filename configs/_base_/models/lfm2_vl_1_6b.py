"""LFM2-VL 1.6B, frozen: the 6 of 16 decoder layers that have attention x 32 heads x 2 levels = 384 attention channels."""

from flmm_detseg.lmms.families.lfm2_vl import Lfm2VlAdapter

lmm = dict(
    type=Lfm2VlAdapter.from_pretrained,
    pretrained="LiquidAI/LFM2-VL-1.6B",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
