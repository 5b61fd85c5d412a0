"""LLaVA-NeXT."""

from tiny import tiny_llava_next_config, tiny_tokenizer

from flmm_detseg.lmms import LlavaNextAdapter


def build(**arguments) -> LlavaNextAdapter:
    """A coarse view and fine tiles."""
    return LlavaNextAdapter.from_config(
        tiny_llava_next_config(), **{"tokenizer": tiny_tokenizer(), **arguments}
    )
