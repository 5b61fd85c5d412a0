"""Detection on COCO's 80 classes, ADE20K's 150 for label maps, answers; on LLaVA-1.5's tower (strides 3.5 to 28)."""

from flmm_detseg.heads import DetectionHead, LanguageHead, PixelStem, SemanticSegHead, VisionNeck

_tower_layers = (6, 12, 18, 23)
detection = dict(
    type=DetectionHead,
    neck=dict(
        type=VisionNeck,
        vision_layers=_tower_layers,
        project_channels=256,
        channels=256,
        scales=(4, 2, 1, 0.5),
        gate="static",
        side=dict(type=PixelStem, stride=4, channels=64),
    ),
    class_names="coco",
    classifier="closed",
)
segmentation = dict(
    type=SemanticSegHead,
    neck=dict(
        type=VisionNeck,
        vision_layers=_tower_layers,
        project_channels=256,
        channels=256,
        scales=(4, 2, 1, 0.5),
        gate="static",
        side=dict(type=PixelStem, stride=4, channels=64),
    ),
    class_names="ade20k",
    ce_weight=1.0,
)
language = dict(type=LanguageHead)
