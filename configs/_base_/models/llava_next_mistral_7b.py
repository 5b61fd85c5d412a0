"""LLaVA-NeXT (1.6) mistral 7B, frozen: 1024 coarse and 1024 fine attention channels."""

from flmm_detseg.lmms import LlavaNextAdapter

lmm = dict(
    type=LlavaNextAdapter.from_pretrained,
    pretrained="llava-hf/llava-v1.6-mistral-7b-hf",
    dtype="bfloat16",
    prompt_template="mistral",
    rows=dict(merge="mean"),
)
