"""LLaVA-1.5."""

from tiny import tiny_llava_config, tiny_tokenizer

from flmm_detseg.lmms import LlavaAdapter


def build(**arguments) -> LlavaAdapter:
    """One square view."""
    return LlavaAdapter.from_config(tiny_llava_config(), **{"tokenizer": tiny_tokenizer(), **arguments})
