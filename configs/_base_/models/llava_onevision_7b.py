"""LLaVA-OneVision 7B, frozen: 28 layers x 28 heads x 2 levels = 1568 attention channels."""

from flmm_detseg.lmms.families.llava_onevision import LlavaOnevisionAdapter

lmm = dict(
    type=LlavaOnevisionAdapter.from_pretrained,
    pretrained="llava-hf/llava-onevision-qwen2-7b-ov-hf",
    dtype="bfloat16",
    max_length=16384,
    rows=dict(merge="mean"),
)
