"""Qwen3-VL-4B, frozen: 36 layers x 32 heads = 1152 attention channels; the grid follows the image."""

from flmm_detseg.lmms.families.qwen3_vl import Qwen3VLAdapter

lmm = dict(
    type=Qwen3VLAdapter.from_pretrained,
    pretrained="Qwen/Qwen3-VL-4B-Instruct",
    dtype="bfloat16",
    # The model was built for 262,144 positions; a caption and an image need far fewer.
    max_length=4096,
    rows=dict(merge="mean"),
)
