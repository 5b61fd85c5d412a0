"""Names of everything that stored features and stored keys and values depend on. Any change makes another name."""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flmm_detseg.cache.digests import TensorDigests
from flmm_detseg.cache.types import Namespace
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lora_layers import lora_switches

if TYPE_CHECKING:
    from flmm_detseg.cache.model import CachedLMM

# Raise it when isolated encoding or the layout change what comes out.
_SCHEME = 1
# Settings of modules that are named: a number such as an epsilon or a scale, a switch, a word.
_PLAIN = frozenset((bool, int, float, complex, str, torch.dtype))
_NO_SETTING = frozenset(
    ("training", "_is_full_backward_hook", "_is_hf_initialized", "gradient_checkpointing")
)
# Functions hooked on to a model that are kept in mind.
_MAX_GUESTS = 4096
_LIBRARIES = ("torch", "transformers", "peft", "pillow", "numpy")


class Fingerprints:
    """Fingerprints of one model. Thread-safe.

    They are put together for every request: settings and switches as they are now, and a digest per tensor, which is
    taken again only after the tensor changed (:class:`~flmm_detseg.cache.digests.TensorDigests`). So switching a LoRA
    off and on costs no reading of weights. Writing through ``parameter.data`` is seen where it changes one of the few
    values of each tensor that every request compares; code that writes less than whole tensors in this way calls
    :meth:`invalidate` (``CachedLMM.train()`` does). Forward hooks, replaced ``forward`` methods and plain settings of
    modules (an epsilon, a scale) are named as they are at the request; what a hook reads elsewhere is not.

    Args:
        model: The model.
    """

    def __init__(self, model: CachedLMM) -> None:
        self._model = model
        self._digests = TensorDigests()
        self._guests = _Guests()
        # Several threads would read the same weights.
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        # A copied model has tensors of its own, and locks cannot be copied.
        return {"_model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_model"])

    def namespace(self, tenant: str) -> Namespace:
        """Where a tenant's entries of this very model live.

        Args:
            tenant: Owner of the images.

        Raises:
            ConfigError: The model is in training mode: what dropout makes of a background has no name.
        """
        model, inner = self._model, self._model.model.model
        language = (
            inner.multi_modal_projector,
            model.background_projector,
            inner.language_model,
            model.prefusion,
        )
        with self._lock:
            while True:
                vision_fp = self._name(_vision_facts(model), [inner.vision_tower])
                facts = [vision_fp, *_language_facts(model), self._digests.of(model.separators)]
                found = Namespace(tenant, vision_fp, self._name(facts, language))
                if not self._digests.rewritten():
                    return found

    def invalidate(self) -> None:
        """All weights will be read again at the next request."""
        with self._lock:
            self._digests.clear()

    def _programs(self, module: nn.Module) -> str:
        """What a module computes besides its weights: its class, its plain settings, and who was hooked on to it."""
        own = module.__dict__
        plain = [
            (key, value) for key, value in own.items() if type(value) in _PLAIN and key not in _NO_SETTING
        ]
        # Hooks, and methods that were replaced: a function has no name that another process would know.
        guests = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        guests += [own[key] for key in ("forward", "__call__") if key in own]
        name = f"{_class_name(type(module))} {plain}"
        return f"{name} {[self._guests.name(guest) for guest in guests]}" if guests else name

    def _name(self, facts: list[Any], parts: Iterable[nn.Module | None]) -> str:
        lines = [json.dumps(facts, sort_keys=True, default=str)]
        for part in parts:
            lines.append("part")
            modules = {} if part is None else dict(part.named_modules())
            if any(module.training for module in modules.values()):
                raise ConfigError(
                    "a cache is for a model in eval mode, and this one is in training mode; call model.eval() before "
                    'the request, or ask with cache="off"'
                )
            lines += map(repr, lora_switches(modules))
            lines += [f"{path} {self._programs(module)}" for path, module in modules.items()]
            lines += [
                f"{path}.{name} {self._digests.of(tensor)}"
                for path, module in modules.items()
                # One walk for everything: every request waits for it.
                for name, tensor in (*module._parameters.items(), *module._buffers.items())
                if tensor is not None
            ]
        return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


class _Guests:
    """Names for functions that were put on a model; in this process only."""

    def __init__(self) -> None:
        # The functions themselves: a freed one's address may be the next one's.
        self._known: OrderedDict[int, tuple[Any, str]] = OrderedDict()

    def name(self, function: Any) -> str:
        """A name of a function."""
        # Every look at a bound method makes a new object.
        own, bound = getattr(function, "__func__", function), getattr(function, "__self__", None)
        parts = []
        for part in (own, bound):
            known = self._known.setdefault(id(part), (part, uuid.uuid4().hex))
            self._known.move_to_end(id(part))
            parts.append(known[1])
        while len(self._known) > _MAX_GUESTS:
            self._known.popitem(last=False)
        return "/".join(parts)


def _vision_facts(model: CachedLMM) -> list[Any]:
    """What the features depend on besides weights and pixels of the tower's input."""
    return [
        _SCHEME,
        _library_versions(),
        _processor_facts(model),
        _plain(model.model.config.vision_config),
        model.feature_layer,
        _numerics(model),
    ]


def _language_facts(model: CachedLMM) -> list[Any]:
    """What keys and values depend on besides the features, weights and the system text."""
    layout = asdict(model.layout)
    # Says what is refused, not what comes out.
    del layout["max_length"]
    fusion = None if model.prefusion is None else asdict(model.prefusion.settings)
    return [_plain(model.model.config.text_config), layout, fusion]


def _processor_facts(model: CachedLMM) -> list[Any] | None:
    """How pixels become the tower's input."""
    processor = model.processor
    if processor is None:
        return None
    settings = processor.settings
    return [
        type(processor).__name__,
        processor.image_side,
        processor.patch_size,
        list(settings.image_mean),
        list(settings.image_std),
    ]


def _numerics(model: CachedLMM) -> list[Any]:
    """How numbers are computed: device, precision, attention functions."""
    device, config = model.device, model.model.config
    autocast = torch.is_autocast_enabled(device.type)
    return [
        device.type,
        torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        str(torch.get_autocast_dtype(device.type)) if autocast else None,
        _float32_precision(),
        config.vision_config._attn_implementation,
        config.text_config._attn_implementation,
    ]


def _float32_precision() -> list[Any]:
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]
    # Since 2.9 the older getters raise errors in programs that use the newer switches.
    parts = (
        backends,
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    return [part.fp32_precision for part in parts]


@cache
def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _library_versions() -> list[str]:
    return [version(name) for name in _LIBRARIES]


def _plain(config: Any) -> dict[str, Any]:
    """Fields of a transformers config."""
    # Names and paths do not change a bit of the outcome.
    hidden = ("_name_or_path", "transformers_version", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in hidden}
