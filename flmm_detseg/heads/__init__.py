"""Heads: captured LMM states in, masks and boxes out. See docs/architecture.md, section Rooms."""

from flmm_detseg.compat import install

install()  # before any module of this package imports mmdet or mmseg

from flmm_detseg.heads.base import Head, head_of, require_head  # noqa: E402
from flmm_detseg.heads.detection_head import DetectionHead  # noqa: E402
from flmm_detseg.heads.language_head import LanguageHead  # noqa: E402
from flmm_detseg.heads.neck import VisionNeck  # noqa: E402
from flmm_detseg.heads.phrase_head import PhraseGroundingHead  # noqa: E402
from flmm_detseg.heads.semantic_head import SemanticSegHead  # noqa: E402
from flmm_detseg.heads.side_stream import PixelStem  # noqa: E402
from flmm_detseg.heads.unet_head import UNetHead  # noqa: E402

__all__ = [
    "DetectionHead",
    "Head",
    "LanguageHead",
    "PhraseGroundingHead",
    "PixelStem",
    "SemanticSegHead",
    "UNetHead",
    "VisionNeck",
    "head_of",
    "require_head",
]
