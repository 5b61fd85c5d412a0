"""Reading detectors and segmenters in hub layout, and saying which they are."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.evaluation.results import weights_hash
from flmm_detseg.lmms.weights.loading import remote_code_hint
from flmm_detseg.utils.hub import check_folder
from flmm_detseg.utils.provenance import file_hash


def load_pair(
    model_class: type[PreTrainedModel],
    processor_class: type[ProcessorMixin],
    name: str,
    device: torch.device,
) -> tuple[PreTrainedModel, ProcessorMixin, dict[str, Any]]:
    """Loads a model (float32, for inference) and its processor.

    Weights of the file that the model has no place for are counted, not refused: published checkpoints carry leftovers
    of their conversion.

    Args:
        model_class: E.g. ``SamModel``.
        processor_class: E.g. ``SamProcessor``.
        name: Folder in hub layout, or ``owner/name`` on the hub.
        device: Where to run.

    Returns:
        Model, processor, and what they are: name, revision on the hub (None for a folder), sha256 of the two config
        files, a checksum of the weights, number of unused weights.

    Raises:
        ConfigError: No such model, one of another family, or the processor cannot be read.
        CheckpointError: Weights are damaged, missing or of another shape; names the keys.
    """
    given, name = name, check_folder(name)
    family = model_class.config_class.model_type
    try:
        fields, _ = PretrainedConfig.get_config_dict(name)
        processor = None
        if fields.get("model_type") == family:
            processor = processor_class.from_pretrained(name, trust_remote_code=False)
        config_files = [cached_file(name, "config.json"), _image_settings(name)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{name}: config or processor cannot be read: {' '.join(remote_code_hint(error).split())} "
            "(a hub name needs the network or a filled cache)"
        ) from error
    if processor is None:
        raise ConfigError(f"{name}: model_type is {fields.get('model_type')!r}, {family!r} is needed here")
    try:
        model, info = model_class.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{name}: weights cannot be read: {_one_line(error)}; fetch the model again (safetensors)"
        ) from error
    wrong = {
        kind: sorted(map(str, info[kind]))[:5] for kind in ("missing_keys", "mismatched_keys") if info[kind]
    }
    if wrong:
        raise CheckpointError(f"{name}: weights do not fit config.json: {wrong}; fetch the model again")
    facts = {
        "name": given,
        "revision": getattr(model.config, "_commit_hash", None),
        "config_sha256": file_hash(config_files[0]),
        "preprocessor_sha256": file_hash(config_files[1]),
        "weights_checksum": weights_hash(model),
        "unused_weights": len(info["unexpected_keys"]),
    }
    return model.to(device).eval(), processor, facts


def _image_settings(name: str) -> str:
    """The file with a processor's image settings, which transformers 5 writes into that of the whole processor."""
    whole = cached_file(name, "processor_config.json", _raise_exceptions_for_missing_entries=False)
    own = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=whole is None)
    return own or whole


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
