"""DeepSeek-VL 1.3B, frozen: 24 layers x 16 heads = 384 attention channels on 24 x 24 tokens."""

from flmm_detseg.lmms.families.deepseek_vl import DeepseekVLAdapter

lmm = dict(
    type=DeepseekVLAdapter.from_pretrained,
    pretrained="deepseek-community/deepseek-vl-1.3b-chat",
    dtype="bfloat16",
    max_length=4096,
    rows=dict(merge="mean"),
)
