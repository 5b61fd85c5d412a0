"""Names of everything that stored features and stored keys and values depend on. Any change makes another name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flmm_detseg.cache.types import Namespace
from flmm_detseg.lmms.lora_layers import lora_layers

if TYPE_CHECKING:
    from flmm_detseg.cache.model import CachedLMM

# Raise it when isolated encoding or the layout change what comes out.
_SCHEME = 1
_LIBRARIES = ("torch", "transformers", "pillow", "numpy")


class Fingerprints:
    """Fingerprints of one model; weights are read again only after they changed.

    Changes are seen by the tensors' addresses and version counters, LoRA switches and the attention function. Writing
    through ``parameter.data`` is not seen: call :meth:`invalidate` then (``CachedLMM.train()`` does).

    Args:
        model: The model.
    """

    def __init__(self, model: CachedLMM) -> None:
        self._model = model
        self._seen: Any = None
        self._found = ("", "")

    def namespace(self, tenant: str) -> Namespace:
        """Where a tenant's entries of this very model live.

        Args:
            tenant: Owner of the images.
        """
        seen = self._state()
        if seen != self._seen:
            vision = self._vision()
            self._found, self._seen = (vision, self._language(vision)), seen
        return Namespace(tenant, *self._found)

    def invalidate(self) -> None:
        """The weights will be read again at the next request."""
        self._seen = None

    def _state(self) -> tuple[Any, ...]:
        model = self._model
        tensors = [*model.parameters(), *model.buffers()]
        return (
            [(t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype) for t in tensors],
            _lora_switches(model),
            _attention(model),
            torch.is_autocast_enabled(model.device.type),
            model.layout,
        )

    def _vision(self) -> str:
        model, processor = self._model, self._model.processor
        facts = [
            _SCHEME,
            [version(name) for name in _LIBRARIES],
            None
            if processor is None
            else [
                type(processor).__name__,
                processor.image_side,
                processor.patch_size,
                list(processor.settings.image_mean),
                list(processor.settings.image_std),
            ],
            _plain(model.model.config.vision_config),
            model.feature_layer,
            model.device.type,
            torch.is_autocast_enabled(model.device.type),
            _attention(model),
        ]
        return _digest(facts, [model.model.model.vision_tower])

    def _language(self, vision: str) -> str:
        model = self._model
        projectors = [model.model.model.multi_modal_projector, model.background_projector]
        facts = [
            vision,
            _plain(model.model.config.text_config),
            model.layout.positions,
            model.layout.letterbox,
            model.layout.num_patches,
            model.layout.compressed,
        ]
        parts = (*projectors, model.model.model.language_model, model.prefusion)
        parts = [part for part in parts if part is not None]
        return _digest(facts, parts, [("separators", model.separators)])


def _plain(config: Any) -> dict[str, Any]:
    """Fields of a transformers config."""
    # Names and paths do not change a bit of the outcome.
    hidden = ("_name_or_path", "transformers_version", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in hidden}


def _attention(model: CachedLMM) -> tuple[str, str]:
    config = model.model.config
    return config.vision_config._attn_implementation, config.text_config._attn_implementation


def _lora_switches(module: nn.Module) -> list[str]:
    return [
        repr((name, layer.disable_adapters, layer.active_adapters, layer.merged_adapters, layer.scaling))
        for name, layer in lora_layers(module).items()
    ]


def _digest(facts: list[Any], parts: Iterable[nn.Module], more: Iterable[tuple[str, Tensor]] = ()) -> str:
    digest = blake2b(digest_size=16)
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for index, part in enumerate(parts):
        digest.update(json.dumps([index, _lora_switches(part)]).encode())
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            _update(digest, name, tensor)
    for name, tensor in more:
        _update(digest, name, tensor)
    return digest.hexdigest()


def _update(digest: blake2b, name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
