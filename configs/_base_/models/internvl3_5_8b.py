"""InternVL3.5-8B, frozen: 36 layers x 32 heads x 2 levels = 2304 attention channels; tiles of 16 x 16 tokens."""

from flmm_detseg.lmms.families.internvl import InternVLAdapter

lmm = dict(
    type=InternVLAdapter.from_pretrained,
    pretrained="OpenGVLab/InternVL3_5-8B-HF",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
