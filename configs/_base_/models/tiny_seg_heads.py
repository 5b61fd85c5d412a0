"""Heads that make a mask of each `[SEG]` of an answer: with the tiny SAM, and from the tiny LLaVA's tower alone."""

from flmm_detseg.heads import AnswerPresenceHead, PixelStem, PointerHead, SegTokenHead, VisionNeck
from flmm_detseg.refiners import SAMRefiner

seg_token = dict(
    type=SegTokenHead,
    sam=dict(type=SAMRefiner.from_pretrained, checkpoint="data/models/tiny_sam"),
    train_decoder=True,
    position="before",
)
pointer = dict(
    type=PointerHead,
    neck=dict(
        type=VisionNeck,
        vision_layers=(1, 2, 3, 4),
        channels=48,
        scales=(4, 2, 1),
        gate="none",
        side=dict(type=PixelStem, stride=2, channels=24),
    ),
    embed_size=48,
    channels=48,
    rates=(1, 2, 3),
    position="before",
)
# Whether there is what is asked for (docs/presence.md); a recipe gives it to a head and calibrates it.
answer_presence = dict(type=AnswerPresenceHead, width=96, dropout=0.1)
