"""Heads: captured LMM states in, masks and boxes out. See docs/architecture.md, section Rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.compat import install
from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.heads.answer_presence_head import AnswerPresenceHead
    from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
    from flmm_detseg.heads.base import Head, head_of, named_heads, require_head
    from flmm_detseg.heads.detection_head import DetectionHead
    from flmm_detseg.heads.language_head import LanguageHead
    from flmm_detseg.heads.neck import VisionNeck
    from flmm_detseg.heads.phrase_head import PhraseGroundingHead
    from flmm_detseg.heads.pointer_head import PointerHead
    from flmm_detseg.heads.presence_head import PresenceHead
    from flmm_detseg.heads.seg_token_head import SegTokenHead
    from flmm_detseg.heads.semantic_head import SemanticSegHead
    from flmm_detseg.heads.side_stream import PixelStem
    from flmm_detseg.heads.unet_head import UNetHead

__all__ = [
    "AnswerPresenceHead",
    "AttentionMaskHead",
    "DetectionHead",
    "Head",
    "LanguageHead",
    "PhraseGroundingHead",
    "PixelStem",
    "PointerHead",
    "PresenceHead",
    "SegTokenHead",
    "SemanticSegHead",
    "UNetHead",
    "VisionNeck",
    "head_of",
    "named_heads",
    "require_head",
]

# Before any module of this package imports mmdet or mmseg.
install()

__getattr__, __dir__ = lazy_names(__name__)
