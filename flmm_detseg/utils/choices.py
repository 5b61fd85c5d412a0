"""Values that options may take, for commands that name them without importing what acts on them."""

from __future__ import annotations

# What a referring expression without a pixel counts as.
EMPTY_CONVENTIONS = ("skip", "count_as_zero", "grefcoco")
# Whose rules say what an answer with masks is worth where nothing fits the query.
NO_TARGET_CONVENTIONS = ("lisa", "gsva", "rela", "vision_reasoner")
# How attention heads are ranked.
RANKING_METHODS = ("contrast", "localisation")
# What computes COCO's figures.
COCO_BACKENDS = ("pycocotools", "faster")
# Where the boxes of an evaluation come from: the detection head, or answers in words.
BOX_SOURCES = ("head", "text")
# How boxes are written for an LMM: as joint answers are written, or as the tiny LLaVA writes captions with boxes.
BOX_WORDS = ("template", "tinyworld")
# What to do with Pascal VOC's objects marked difficult.
DIFFICULT = ("ignore", "keep", "drop")
# Chats of LLaVA and LLaVA-NeXT; other families have their own.
PROMPT_TEMPLATES = (
    "vicuna",
    "mistral",
    "llava_v1",
    "llava_v1_marked",
    "llava_llama_2",
    "llava_llama_2_marked",
)
# Sizes of segment-anything.
SAM_VARIANTS = ("vit_b", "vit_l", "vit_h", "tiny")
# Formats of other tools that results can be written in.
EXPORT_FORMATS = ("coco", "label-studio", "yolo", "panoptic")
# How answers in words, boxes and masks are written (flmm_detseg.language.formats).
TEXT_FORMATS = (
    "template",
    "template_runs",
    "template_places",
    "qwen_json",
    "qwen_json_pixels",
    "boxed_caption",
)
