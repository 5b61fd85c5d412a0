"""LLaVA-NeXT (1.6) vicuna 7B, frozen: 32 layers x 32 heads x 2 levels (coarse, fine) = 2048 attention channels."""

from flmm_detseg.lmms import LlavaNextAdapter

lmm = dict(
    type=LlavaNextAdapter.from_pretrained,
    pretrained="llava-hf/llava-v1.6-vicuna-7b-hf",
    dtype="bfloat16",
    prompt_template="vicuna",
    rows=dict(merge="mean"),
)
