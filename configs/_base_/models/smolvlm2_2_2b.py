"""SmolVLM2 2.2B, frozen: 24 layers x 32 heads x 2 levels = 1536 attention channels; tiles of 9 x 9 tokens."""

from flmm_detseg.lmms.families.smolvlm import SmolVLMAdapter

lmm = dict(
    type=SmolVLMAdapter.from_pretrained,
    pretrained="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    dtype="bfloat16",
    max_length=8192,
    rows=dict(merge="mean"),
)
