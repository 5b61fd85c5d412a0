"""Gemma 3 4B, frozen: rows of the 5 of 34 layers without a window x 8 heads = 40 attention channels on 16 x 16 tokens."""

from flmm_detseg.lmms.families.gemma3 import Gemma3Adapter

lmm = dict(
    type=Gemma3Adapter.from_pretrained,
    pretrained="google/gemma-3-4b-it",
    dtype="bfloat16",
    max_length=4096,
    rows=dict(merge="mean"),
)
