"""DeepSeek-VL 7B (two towers), frozen: 30 layers x 32 heads = 960 attention channels on 24 x 24 tokens."""

from flmm_detseg.lmms.families.deepseek_vl import DeepseekVLHybridAdapter

lmm = dict(
    type=DeepseekVLHybridAdapter.from_pretrained,
    pretrained="deepseek-community/deepseek-vl-7b-chat",
    dtype="bfloat16",
    max_length=4096,
    rows=dict(merge="mean"),
)
