"""LMM adapters: the only room that knows transformers and peft. See docs/architecture.md, section Rooms."""

from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.llava import LlavaAdapter
from flmm_detseg.lmms.llava_next import LlavaNextAdapter
from flmm_detseg.lmms.processors import LlavaNextProcessor, LlavaProcessor, LMMProcessor, ProcessorSettings
from flmm_detseg.lmms.row_tap import RowSettings

__all__ = [
    "LMMAdapter",
    "LMMProcessor",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaNextProcessor",
    "LlavaProcessor",
    "ProcessorSettings",
    "RowSettings",
]
