"""The tokenizer of a model folder, without the model and without transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.hub import model_folder

_FILE = "tokenizer.json"


def read_offsets(model: str | Path) -> Callable[[str], list[tuple[int, int]]]:
    """How the tokenizer of a stored LMM cuts a text.

    Args:
        model: Folder in hub layout, or name on the hub, as :func:`~flmm_detseg.utils.hub.model_folder`.

    Returns:
        From a text to the character ranges of its tokens, special ones aside.

    Raises:
        ConfigError: No such model, or it has no ``tokenizer.json`` that can be read.
    """
    return _offsets(model_folder(model) / _FILE)


@functools.cache
def _offsets(file: Path) -> Callable[[str], list[tuple[int, int]]]:
    from tokenizers import Tokenizer

    if not file.is_file():
        raise ConfigError(f"{file} does not exist: save the tokenizer with `save_pretrained` of transformers")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no class of its own
        raise ConfigError(f"{file} is no tokenizer that can be read ({error}); save it again") from error

    def offsets(text: str) -> list[tuple[int, int]]:
        return tokenizer.encode(text, add_special_tokens=False).offsets

    return offsets
