"""LoRA in PEFT's own layout, both ways: ``adapter_model.safetensors`` and ``adapter_config.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flmm_detseg.compat.transformers5 import names_here
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.lmms.lora.conv_lora import ConvLoRADown
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.utils.whole_files import new_folder, read_json, write_bytes

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_LISTED = 4
# What an adapter may be beside plain LoRA, and we are not; with the values that mean that it is not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    **{
        name: (None, False, [], {})
        for name in (
            "use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication", "target_parameters",
            "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "arrow_config", "corda_config",
            "use_bdlora", "velora_config", "monteclora_config",
        )
    },
}  # fmt: skip


def write_adapter(model: nn.Module, base: str, out: Path) -> dict[str, Any]:
    """Stores the LoRA layers of a model as one adapter of PEFT.

    Groups of different rank and scale become its patterns of ranks and scales. Groups that share a linear become one of
    the ranks' sum, which is the same change up to rounding.

    Args:
        model: A model of transformers with LoRA layers.
        base: Where the model came from, for PEFT.
        out: Folder to make.

    Returns:
        ``num_layers``, ``num_parameters``, ``ranks``.

    Raises:
        ConfigError: There is no LoRA, or Conv-LoRA, which PEFT does not have.
        RunError: Another program makes the same folder.
    """
    layers = lora_layers(model)
    if not layers:
        raise ConfigError("the LMM has no LoRA; there is no adapter to store")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, layer in layers.items():
        if any(isinstance(down, ConvLoRADown) for down in layer.lora_A.values()):
            raise ConfigError(
                f"`{path}` has Conv-LoRA, which PEFT does not know; train with kind='lora', or store the model with "
                "`flmm-detseg export pretrained`"
            )
        name = path.replace(".base_layer", "")
        down, up, ranks[name], alphas[name] = _one_group(layer)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=_number(alpha),
        target_modules=sorted(ranks),
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: _number(value) for name, value in alphas.items() if value != alpha},
        base_model_name_or_path=base,
        inference_mode=True,
    )
    with new_folder(out) as part:
        write_bytes(part / TENSORS, save(tensors, {"format": "pt"}))
        config.save_pretrained(str(part))
    return {
        "num_layers": len(ranks),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "ranks": sorted(set(ranks.values())),
    }


def read_adapter(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Tensors of an adapter of PEFT for a model with LoRA layers; nothing is loaded unless all of it fits.

    Args:
        model: A model of transformers with one LoRA group on each adapted linear.
        folder: The adapter's.

    Returns:
        By our names within ``model``, in the file's order; float32.

    Raises:
        CheckpointError: A file is missing or damaged, the adapter is more than plain LoRA, or linears, ranks or scales
            differ; lists them.
        ConfigError: Several groups share a linear.
    """
    config, tensors = _read(folder)
    layers = {path.replace(".base_layer", ""): (path, layer) for path, layer in lora_layers(model).items()}
    found: dict[str, dict[str, Tensor]] = {}
    names_there: dict[str, str] = {}
    unexpected = []
    for key, value in tensors.items():
        match = _NAME.fullmatch(key)
        name = "" if match is None else _name_here(match[1], layers, model)
        if match is None or name not in layers:
            unexpected.append(key)
        else:
            found.setdefault(name, {})[match[2]] = value
            names_there[name] = match[1]
    problems = (
        [f"{len(unexpected)} tensors for no LoRA layer here: {_some(unexpected)}"] if unexpected else []
    )
    if missing := [name for name in layers if set(found.get(name, {})) != {"A", "B"}]:
        problems.append(f"{len(missing)} LoRA layers are not in it: {_some(missing)}")
    other: list[str] = []
    result: dict[str, Tensor] = {}
    for name, parts in found.items():
        path, layer = layers[name]
        groups = list(layer.lora_A)
        if len(groups) > 1:
            raise ConfigError(
                f"`{path}`: the groups {', '.join(groups)} share it; an adapter of PEFT is one group"
            )
        scale = _scale(config, names_there[name], parts["A"].shape[0]) if "A" in parts else None
        if scale is not None and abs(scale - layer.scaling[groups[0]]) > 1e-6 * abs(scale):
            other.append(f"{name} (scale {scale:g}, here {layer.scaling[groups[0]]:g})")
        for letter, value in parts.items():
            key = f"{path}.lora_{letter}.{groups[0]}.weight"
            here = model.get_parameter(key)
            if value.shape != here.shape:
                other.append(f"{name} lora_{letter} {tuple(value.shape)}, here {tuple(here.shape)}")
            result[key] = value.float()
    if other:
        problems.append(f"{len(other)} of another rank or scale: {_some(other)}")
    if problems:
        raise CheckpointError(
            f"{folder} does not fit the config's LoRA; {'; '.join(problems)}. The adapter has r={config.get('r')}, "
            f"lora_alpha={config.get('lora_alpha')}, targets {str(config.get('target_modules')):.300}: give "
            "`model.lmm.lora` groups with these"
        )
    return result


def _one_group(layer: LoraLayer) -> tuple[Tensor, Tensor, int, float]:
    """A, B, rank and alpha of a layer; of several groups those of their sum, with B scaled and a scale of 1."""
    groups = list(layer.lora_A)
    if len(groups) == 1:
        (group,) = groups
        down, up = layer.lora_A[group].weight, layer.lora_B[group].weight
        rank = int(down.shape[0])
        return _plain(down), _plain(up), rank, float(layer.scaling[group]) * rank
    down = torch.cat([layer.lora_A[group].weight for group in groups])
    up = torch.cat([layer.lora_B[group].weight * layer.scaling[group] for group in groups], dim=1)
    return _plain(down), _plain(up), int(down.shape[0]), float(down.shape[0])


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone().contiguous()


def _number(value: float) -> Any:
    """A whole number where it is one: PEFT's configs have these."""
    return int(value) if float(value).is_integer() else value


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no {name} in it; PEFT's save_pretrained writes both (safe_serialization=True: a .bin could "
                "run code and is not read)"
            )
    config = read_json(folder / CONFIG, "store the adapter again")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{folder / CONFIG}: its peft_type is {kind!r}; LORA is what can be read")
    if more := [name for name, plain in _PLAIN.items() if name in config and config[name] not in plain]:
        raise CheckpointError(
            f"{folder / CONFIG}: {', '.join(f'{name}={config[name]!r:.60}' for name in more)}; only plain LoRA can be "
            "read. Merge it with PEFT (merge_and_unload) and name the merged LMM in `model.lmm.pretrained`"
        )
    try:
        return config, load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / TENSORS} is damaged ({error}); store the adapter again") from error


def _name_here(name: str, layers: Mapping[str, Any], model: nn.Module) -> str:
    """The name of a linear in this release of transformers, where the adapter was made with another one."""
    if name in layers:  # the usual case; the search goes through the whole model
        return name
    return next((known for known in names_here(model, name) if known in layers), name)


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
