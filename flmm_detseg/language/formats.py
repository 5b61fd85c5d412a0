"""Text formats by name, for configs and commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.boxed_caption import BoxedCaption
from flmm_detseg.language.joint_template import JointTemplate
from flmm_detseg.language.qwen_json import QwenJSON
from flmm_detseg.language.text_format import TextFormat
from flmm_detseg.utils.choices import TEXT_FORMATS
from flmm_detseg.utils.names import suggest

_MAKERS: dict[str, Callable[[], TextFormat]] = {
    "template": JointTemplate,
    "template_runs": partial(JointTemplate, masks="runs"),
    "template_places": partial(JointTemplate, masks="places"),
    "qwen_json": QwenJSON,
    "qwen_json_pixels": partial(QwenJSON, frame="pixels"),
    "boxed_caption": BoxedCaption,
}
assert tuple(_MAKERS) == TEXT_FORMATS


def text_format(chosen: str | Mapping[str, Any] | TextFormat) -> TextFormat:
    """The text format that a config or a command means.

    Args:
        chosen: A name of :data:`~flmm_detseg.utils.choices.TEXT_FORMATS`; ``dict(type=...)`` with the class (or its
            ``name``) and its arguments; or a format.

    Returns:
        The format.

    Raises:
        ConfigError: There is no such format, or it has no such argument.
    """
    if isinstance(chosen, TextFormat):
        return chosen
    if isinstance(chosen, str):
        if chosen not in _MAKERS:
            raise ConfigError(f"there is no text format {chosen!r}{suggest(chosen, _MAKERS)}")
        return _MAKERS[chosen]()
    arguments = dict(chosen)
    kind = arguments.pop("type", None)
    maker: Any = _MAKERS.get(kind) if isinstance(kind, str) else kind
    if maker is None:
        raise ConfigError(
            f"`text_format.type` is {kind!r}{suggest(str(kind), _MAKERS)}; name a text format or its class"
        )
    try:
        made = maker(**arguments)
    except TypeError as error:
        raise ConfigError(f"`text_format`: {error}; its arguments are those of the class") from error
    if not isinstance(made, TextFormat):
        raise ConfigError(f"`text_format.type` is {kind!r}, which is no text format")
    return made
