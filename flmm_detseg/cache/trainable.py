"""Which parameters of a :class:`CachedLMM` are trained, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flmm_detseg.errors import ConfigError

if TYPE_CHECKING:
    from flmm_detseg.cache.cached_lmm import CachedLMM

TRAINABLE = ("separators", "projectors", "prefusion")


def set_trainable(model: CachedLMM, train: Sequence[str], train_layers: int) -> None:
    """Switches gradients of the model's parts on and off; LoRA stays as it is.

    Args:
        model: With all its parts.
        train: Any of :data:`TRAINABLE`.
        train_layers: Last decoder layers of the language model.

    Raises:
        ConfigError: A part is unknown or not there, or there are fewer layers.
    """
    if unknown := sorted(set(train) - set(TRAINABLE)):
        raise ConfigError(f"`train` names {unknown}; allowed: {', '.join(TRAINABLE)}")
    layers = model.model.model.language_model.layers
    if not 0 <= train_layers <= len(layers):
        raise ConfigError(f"`train_layers` is {train_layers}; the language model has {len(layers)} layers")
    if "prefusion" in train and model.prefusion is None:
        raise ConfigError("`train` names 'prefusion', but there is none; give `prefusion` its settings")
    if model.layout.order == "image" and (model.prefusion is not None or "separators" in train):
        raise ConfigError("`order`='image' has neither separators nor pre-fusion; leave them out")
    model.separators.requires_grad_("separators" in train)
    own = [module for module in (model.background_projector, model.object_projector) if module is not None]
    for module in own:
        module.requires_grad_("projectors" in train)
    if "projectors" in train and not own:
        model.model.model.multi_modal_projector.requires_grad_(True)
    if model.prefusion is not None:
        model.prefusion.requires_grad_("prefusion" in train)
    for layer in layers[len(layers) - train_layers :]:
        layer.requires_grad_(True)


def layout_facts(model: CachedLMM) -> dict[str, Any]:
    """What the parts were trained for, see :attr:`LMMAdapter.trained_layout`."""
    layout = model.layout
    # Settings of pre-fusion that no shape shows, such as heads.
    fused = {} if model.prefusion is None else {"prefusion": asdict(model.prefusion.settings)}
    return {
        "num_patches": layout.num_patches,
        "positions": layout.positions,
        "letterbox": layout.letterbox,
        "compressed": layout.compressed,
        "order": layout.order,
        "projectors": "shared" if model.background_projector is None else "separate",
        **fused,
    }
