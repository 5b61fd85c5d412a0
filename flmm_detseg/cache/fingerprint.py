"""Names of everything that stored features and stored keys and values depend on. Any change makes another name."""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain, islice, repeat
from operator import is_
from threading import RLock
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from flmm_detseg.cache.digests import TensorDigests
from flmm_detseg.compat.transformers5 import only_records
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.lora.layers import lora_layers, lora_switches
from flmm_detseg.lmms.processors import PixelProcessor
from flmm_detseg.store.records import Namespace

# Raise it when isolated encoding or the layout change what comes out.
_SCHEME = 1
# Settings of modules that are named: a number such as an epsilon or a scale, a switch, a word.
_PLAIN = frozenset((bool, int, float, complex, str, torch.dtype))
_NO_SETTING = frozenset(
    (
        "training",
        "_is_full_backward_hook",
        "_is_hf_initialized",
        "_output_capturing_hooks_installed",
        "gradient_checkpointing",
    )
)
# Hook functions that are remembered.
_MAX_GUESTS = 4096
_LIBRARIES = ("torch", "transformers", "peft", "pillow", "numpy")


class Named(Protocol):
    """What a fingerprint looks at."""

    processor: PixelProcessor | None
    layout: Any
    prefusion: nn.Module | None
    background_projector: nn.Module | None
    separators: nn.Parameter
    feature_layer: int

    @property
    def lmm(self) -> LMM:
        """The wrapped adapter."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""


class Fingerprints:
    """Fingerprints of one model. Thread-safe.

    They are put together for every request: settings and switches as they are now, and a digest per tensor, which is
    taken again only after the tensor changed (:class:`~flmm_detseg.cache.digests.TensorDigests`). So switching
    a LoRA off and on costs no reading of weights. Writing through ``parameter.data`` is seen where it changes one of
    the few values of each tensor that every request compares; code that writes less than whole tensors in this way
    calls :meth:`invalidate` (``CachedLMM.train()`` does). Forward hooks, replaced ``forward`` methods and plain
    settings of modules (an epsilon, a scale) are named as they are at the request; what a hook reads elsewhere is not.

    Args:
        model: The model.
    """

    def __init__(self, model: Named) -> None:
        self._model = model
        self._digests = TensorDigests()
        self._guests = _Guests()
        self._trees: dict[int, _Tree] = {}
        # Several threads would read the same weights.
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        # A copied model has tensors of its own, and locks cannot be copied.
        return {"_model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Fingerprints.__init__(self, state["_model"])

    def namespace(self, tenant: str) -> Namespace:
        """Where a tenant's entries of this very model live.

        Args:
            tenant: Owner of the images.

        Returns:
            The tenant with two fingerprints: of everything that vision features depend on, and of everything that keys
            and values do.

        Raises:
            ConfigError: The model is in training mode: what dropout makes of a background has no name.
        """
        model, part = self._model, self._model.lmm.part_module
        parts = (
            part("vision"),
            part("projector"),
            model.background_projector,
            part("llm"),
            model.prefusion,
        )
        with self._lock:
            trees = [self._tree(place, part) for place, part in enumerate(parts)]
            # All of them in one call: every request waits for it.
            tensors = [tree.tensors() for tree in trees]
            digests = iter(self._digests.of_all([*chain.from_iterable(tensors), model.separators]))
            weights = [list(islice(digests, len(found))) for found in tensors]
            vision_fp = _hashed(_vision_facts(model), trees[:1], weights[:1])
            facts = [vision_fp, *_language_facts(model), next(digests)]
            return Namespace(tenant, vision_fp, _hashed(facts, trees[1:], weights[1:]))

    def invalidate(self) -> None:
        """All weights will be read again at the next request."""
        with self._lock:
            self._digests.clear()

    def _tree(self, place: int, root: nn.Module | None) -> _Tree:
        tree = self._trees.get(place)
        if tree is None or not tree.still(root):
            # First: a model in training mode is refused, and checked again at the next request.
            self._trees.pop(place, None)
            tree = self._trees[place] = _Tree(root, self._guests)
        return tree


class _Tree:
    """What the modules of a part of the model compute besides its weights, and where its weights are.

    Every request asks whether it is :meth:`still` so, hence all modules are compared at once, by the identity of their
    attributes. A replaced module or attribute lives until the next request; a replaced tensor does not.

    Args:
        root: The part; None has no modules.
        guests: Names hooks.

    Raises:
        ConfigError: A module is in training mode.
    """

    def __init__(self, root: nn.Module | None, guests: _Guests) -> None:
        modules = {} if root is None else dict(root.named_modules())
        if any(module.training for module in modules.values()):
            raise ConfigError(
                "a cache is for a model in eval mode, and this one is in training mode; call model.eval() before "
                'the request, or ask with cache="off"'
            )
        self._root, self._modules, self._guests = root, modules, guests
        found = modules.values()
        # Attributes, and modules below. The dicts of hooks and tensors are attributes, so they are the same ones.
        self._children = [module._modules for module in found]
        self._dicts = [*(module.__dict__ for module in found), *self._children]
        self._values = list(chain.from_iterable(map(dict.values, self._dicts)))
        self._hooks = [
            hooks for module in found for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]
        self._stores = [store for module in found for store in (module._parameters, module._buffers)]
        self._switched = {} if root is None else lora_layers(root)
        programs = [f"{path} {_program(module)}" for path, module in modules.items()]
        # A name that has no tensor is another program: its place in the list of tensors is missing.
        names = [
            f"{path} {name}"
            for path, module in modules.items()
            for store in (module._parameters, module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        self._fixed = _hash([*programs, *names])
        self._seen = self._look()
        # Methods that were replaced.
        self._methods = [
            (path, module.__dict__[key])
            for path, module in modules.items()
            for key in ("forward", "__call__")
            if key in module.__dict__
        ]

    def still(self, root: nn.Module | None) -> bool:
        """Whether classes, attributes and modules are the ones that were found."""
        return (
            root is self._root
            and self._look() == self._seen
            and all(map(is_, chain.from_iterable(map(dict.values, self._dicts)), self._values))
        )

    def _look(self) -> tuple[list[Any], ...]:
        """Classes, numbers of attributes, names of modules and tensors, and which of the latter there are."""
        return (
            list(map(type, self._modules.values())),
            list(map(len, self._dicts)),
            list(chain.from_iterable(self._children)),
            list(map(len, self._stores)),
            list(chain.from_iterable(self._stores)),
            list(map(is_, chain.from_iterable(map(dict.values, self._stores)), repeat(None))),
        )

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers, as they are now."""
        return [tensor for store in self._stores for tensor in store.values() if tensor is not None]

    def lines(self) -> Iterator[str]:
        """What is computed besides weights, as it is now, and what the weights are called."""
        yield self._fixed
        yield from map(repr, lora_switches(self._switched))
        # A function has no name that is valid in another process.
        yield from (f"{path} {self._guests.name(method)}" for path, method in self._methods)
        if any(self._hooks):
            names = (path for path in self._modules for _ in range(2))
            for place, (path, hooks) in enumerate(zip(names, self._hooks, strict=True)):
                guests = (hook for hook in hooks.values() if not only_records(hook))
                yield from (f"{path} {place % 2} {self._guests.name(hook)}" for hook in guests)


def _program(module: nn.Module) -> str:
    """What a module computes besides its weights: its class and its plain settings."""
    plain = [
        (key, value)
        for key, value in module.__dict__.items()
        if type(value) in _PLAIN and key not in _NO_SETTING
    ]
    kind: Any = type(module)  # a class is hashable; mypy looks at the `__hash__` of its instances
    return f"{_class_name(kind)} {plain}"


def _hashed(facts: list[Any], trees: Iterable[_Tree], weights: Iterable[list[str]]) -> str:
    lines = [json.dumps(facts, sort_keys=True, default=str)]
    for tree, digests in zip(trees, weights, strict=True):
        lines += ["part", *tree.lines(), *digests]
    return _hash(lines)


def _hash(lines: list[str]) -> str:
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


class _Guests:
    """Names for functions that were put on a model; in this process only."""

    def __init__(self) -> None:
        # The functions themselves: a freed one's address may be the next one's.
        self._known: OrderedDict[int, tuple[Any, str]] = OrderedDict()

    def name(self, function: Any) -> str:
        """A name of a function."""
        # Every access to a bound method makes a new object.
        own, bound = getattr(function, "__func__", function), getattr(function, "__self__", None)
        parts = []
        for part in (own, bound):
            known = self._known.setdefault(id(part), (part, uuid.uuid4().hex))
            self._known.move_to_end(id(part))
            parts.append(known[1])
        while len(self._known) > _MAX_GUESTS:
            self._known.popitem(last=False)
        return "/".join(parts)


def _vision_facts(model: Named) -> list[Any]:
    """What the features depend on besides weights and pixels of the tower's input."""
    return [
        _SCHEME,
        _library_versions(),
        _processor_facts(model),
        _plain(model.lmm.part_config("vision")),
        model.feature_layer,
        _numerics(model),
    ]


def _language_facts(model: Named) -> list[Any]:
    """What keys and values depend on besides the features, weights and the system text."""
    layout = asdict(model.layout)
    # Decides what is refused, not what is computed.
    del layout["max_length"]
    fusion = None if model.prefusion is None else asdict(cast(Any, model.prefusion.settings))  # PreFusion
    return [_plain(model.lmm.part_config("llm")), layout, fusion]


def _processor_facts(model: Named) -> list[Any] | None:
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


def _numerics(model: Named) -> list[Any]:
    """How numbers are computed: device, precision, attention functions."""
    device = model.device
    autocast = torch.is_autocast_enabled(device.type)
    return [
        device.type,
        torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        str(torch.get_autocast_dtype(device.type)) if autocast else None,
        _float32_precision(),
        *(model.lmm.part_config(part)._attn_implementation for part in ("vision", "llm")),
    ]


def _float32_precision() -> list[Any]:
    backends: Any = torch.backends  # torch's stubs leave these switches out
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
