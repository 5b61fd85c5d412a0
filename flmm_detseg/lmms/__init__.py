"""LMM adapters: the room that reaches into LMMs of transformers. See docs/architecture.md, section Rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.lmms.base import LMMAdapter
    from flmm_detseg.lmms.capture.row_tap import RowSettings
    from flmm_detseg.lmms.families.llava import LlavaAdapter, LlavaProcessor
    from flmm_detseg.lmms.families.llava_next import LlavaNextAdapter, LlavaNextProcessor
    from flmm_detseg.lmms.lora.groups import LoRAGroup, add_lora, lora_groups
    from flmm_detseg.lmms.lora.layers import lora_group_of, lora_off, recompute_contexts
    from flmm_detseg.lmms.lora.on_convolutions import add_conv_lora_to_convs, add_head_lora
    from flmm_detseg.lmms.processors import LMMProcessor, ProcessorSettings
    from flmm_detseg.lmms.weights.parameters import ParameterReport, format_report, parameter_report

__all__ = [
    "LMMAdapter",
    "LMMProcessor",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaNextProcessor",
    "LlavaProcessor",
    "LoRAGroup",
    "ParameterReport",
    "ProcessorSettings",
    "RowSettings",
    "add_conv_lora_to_convs",
    "add_head_lora",
    "add_lora",
    "format_report",
    "lora_group_of",
    "lora_groups",
    "lora_off",
    "parameter_report",
    "recompute_contexts",
]

__getattr__, __dir__ = lazy_names(__name__)
