"""LISA's head: SAM ViT-H, whose mask decoder is trained; cross-entropy 2.0, dice 0.5."""

from flmm_detseg.heads import SegTokenHead
from flmm_detseg.refiners import SAMRefiner

seg_token = dict(
    type=SegTokenHead,
    sam=dict(
        type=SAMRefiner.from_pretrained,
        variant="vit_h",
        checkpoint="data/models/sam_vit_h_4b8939.pth",
        dtype="bfloat16",
        attention="sdpa",
    ),
    train_decoder=True,
    position="before",
)
