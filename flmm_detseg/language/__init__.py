"""The language of boxes and masks: canonical coordinates, the joint template, its parser. See docs/architecture.md."""

from flmm_detseg.language.boxed_caption import BoxedCaption
from flmm_detseg.language.confidence import score_detections, span_confidence, token_log_probs
from flmm_detseg.language.coordinates import (
    MAX_COORDINATE,
    dequantise_boxes,
    dequantise_points,
    quantise_boxes,
    quantise_points,
)
from flmm_detseg.language.draw_mask import draw_mask
from flmm_detseg.language.formats import text_format
from flmm_detseg.language.items import BoxItem, JointAnswer, MaskItem
from flmm_detseg.language.joint_template import JointTemplate
from flmm_detseg.language.mask_runs import MaskRuns
from flmm_detseg.language.number_words import NumberWords, number_words
from flmm_detseg.language.parse import ParsedAnswer, ParseProblem, ParseReport, parse_answer
from flmm_detseg.language.polygons import MaskPolygons, mask_to_polygons, polygons_to_mask
from flmm_detseg.language.qwen_json import QwenJSON
from flmm_detseg.language.scanner import ItemSpan
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions, serialise
from flmm_detseg.language.task_tokens import (
    OBJECTS_QUESTION,
    SEG_TOKEN,
    TASK_TOKENS,
    build_prompt,
    remove_special_tokens,
)
from flmm_detseg.language.text_format import TextFormat

__all__ = [
    "MAX_COORDINATE",
    "OBJECTS_QUESTION",
    "SEG_TOKEN",
    "TASK_TOKENS",
    "BoxItem",
    "BoxedCaption",
    "ItemSpan",
    "JointAnswer",
    "JointTemplate",
    "MaskItem",
    "MaskPolygons",
    "MaskRuns",
    "NumberWords",
    "ParseProblem",
    "ParseReport",
    "ParsedAnswer",
    "QwenJSON",
    "SerialiseOptions",
    "SerialisedAnswer",
    "TextFormat",
    "build_prompt",
    "dequantise_boxes",
    "dequantise_points",
    "draw_mask",
    "mask_to_polygons",
    "number_words",
    "parse_answer",
    "polygons_to_mask",
    "quantise_boxes",
    "quantise_points",
    "remove_special_tokens",
    "score_detections",
    "serialise",
    "span_confidence",
    "text_format",
    "token_log_probs",
]
