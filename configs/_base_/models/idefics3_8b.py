"""Idefics3-8B, frozen: 32 layers x 32 heads x 2 levels = 2048 attention channels; tiles of 13 x 13 tokens."""

from flmm_detseg.lmms.families.idefics3 import Idefics3Adapter

lmm = dict(
    type=Idefics3Adapter.from_pretrained,
    pretrained="HuggingFaceM4/Idefics3-8B-Llama3",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
