"""Detection and semantic segmentation on the tiny LLaVA's vision tower (patch 8: strides 2, 4, 8, 16), and answers."""

from flmm_detseg.heads import DetectionHead, LanguageHead, PixelStem, SemanticSegHead, VisionNeck

detection = dict(
    type=DetectionHead,
    neck=dict(
        type=VisionNeck,
        vision_layers=(1, 2, 3, 4),
        channels=64,
        scales=(2, 1, 0.5),
        gate="none",
        side=dict(type=PixelStem, stride=4, channels=32),
    ),
    class_names="tinyworld_things",
    classifier="closed",
    feat_channels=64,
    stacked_convs=2,
)
segmentation = dict(
    type=SemanticSegHead,
    neck=dict(
        type=VisionNeck,
        vision_layers=(1, 2, 3, 4),
        channels=48,
        scales=(4, 2, 1),
        gate="none",
        side=dict(type=PixelStem, stride=2, channels=24),
    ),
    class_names="tinyworld",
    channels=48,
    rates=(1, 2, 3),
    ce_weight=1.0,
)
language = dict(type=LanguageHead)
