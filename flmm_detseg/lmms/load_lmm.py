"""An LMM as it was published, of whichever family it is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.all_families import find_adapter
from flmm_detseg.lmms.chat import find_template
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.utils.hub import check_folder


def load_lmm(
    pretrained: str,
    *,
    rows: dict[str, Any] | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    prompt_template: str | None = None,
    max_length: int | None = None,
) -> LMM:
    """Loads an LMM; the family is found from its config.

    Args:
        pretrained: Folder in hub layout, or hub name, of a model of any family in ``lmms/families``.
        rows: Settings of the attention stack, see :class:`~flmm_detseg.lmms.capture.row_tap.RowSettings`.
        dtype: Of the weights; None: bfloat16 on a GPU, float32 without.
        device: For example ``"cuda:0"``; None takes the GPU when there is one.
        prompt_template: Of LLaVA and LLaVA-NeXT, a name of its chat templates; None: ``"mistral"`` for
            LLaVA-NeXT over Mistral, else ``"vicuna"``. Other families have their own.
        max_length: Longest sequence in tokens; None: what the language model was built for.

    Returns:
        The adapter in eval mode, on the device.

    Raises:
        ConfigError: No such model, or none of a family that is known; an argument cannot be used, such as a template
            for a family that has its own.
        CheckpointError: The weights are absent, damaged, or do not fit the config.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    adapter = find_adapter(pretrained)
    if prompt_template is not None:
        find_template(prompt_template)
        if hasattr(adapter.family_class, "template"):
            raise ConfigError(
                f"`prompt_template` is {prompt_template!r} (--prompt-template), and {pretrained} is of a family with a "
                f"template of its own ({adapter.__name__}); leave it out"
            )
    template = prompt_template or _own_template(pretrained)
    lmm = adapter.from_pretrained(
        pretrained, dtype=dtype, rows=rows, prompt_template=template, max_length=max_length
    )
    return lmm.to(device).eval()


def _own_template(pretrained: str) -> str:
    """The template that a published LLaVA-NeXT was trained with; LLaVA over Mistral (BakLLaVA) has Vicuna's as well."""
    fields, _ = PretrainedConfig.get_config_dict(check_folder(pretrained))
    text = fields.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    return "mistral" if (fields.get("model_type"), inner) == ("llava_next", "mistral") else "vicuna"
