"""Qwen2.5-VL 7B, frozen: 28 layers x 28 heads = 784 attention channels at the image's own aspect."""

from flmm_detseg.lmms.families.qwen2_5_vl import Qwen2_5VLAdapter

lmm = dict(
    type=Qwen2_5VLAdapter.from_pretrained,
    pretrained="Qwen/Qwen2.5-VL-7B-Instruct",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
