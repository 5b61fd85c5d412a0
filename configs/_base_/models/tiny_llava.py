"""The tiny LLaVA of this repository, frozen: 4 layers x 8 heads = 32 attention channels on 14 x 14 patches."""

from flmm_detseg.lmms import LlavaAdapter

lmm = dict(
    type=LlavaAdapter.from_pretrained,
    pretrained="data/models/tiny_llava",
    dtype="float32",
    prompt_template="vicuna",
    rows=dict(merge="mean"),
)
