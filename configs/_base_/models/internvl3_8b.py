"""InternVL3-8B, frozen: 28 layers x 28 heads x 2 levels = 1568 attention channels; tiles of 16 x 16 tokens."""

from flmm_detseg.lmms.families.internvl import InternVLAdapter

lmm = dict(
    type=InternVLAdapter.from_pretrained,
    pretrained="OpenGVLab/InternVL3-8B-hf",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
