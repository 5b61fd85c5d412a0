"""LLaVA-1.5-7B, frozen: 32 layers x 32 heads = 1024 attention channels on 24 x 24 patches."""

from flmm_detseg.lmms import LlavaAdapter

lmm = dict(
    type=LlavaAdapter.from_pretrained,
    pretrained="llava-hf/llava-1.5-7b-hf",
    dtype="bfloat16",
    prompt_template="vicuna",
    rows=dict(merge="mean"),
)
