"""Qwen3-VL-4B, frozen: 36 layers x 32 heads = 1152 attention channels; the grid follows the image."""

from flmm_detseg.lmms.families.qwen3_vl import Qwen3VLAdapter

lmm = dict(
    type=Qwen3VLAdapter.from_pretrained,
    pretrained="Qwen/Qwen3-VL-4B-Instruct",
    dtype="bfloat16",
    # Images keep their resolution: one of 3000 x 4000 pixels has 11,720 tokens, the largest one 16,384.
    max_length=20480,
    rows=dict(merge="mean"),
)
