"""What a wrapped LLaVA adapter knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaAdapter, LMMAdapter
from flmm_detseg.lmms.weights.precision import float32_buffers, restore_buffers


class WrappedLlava(LMMAdapter):
    """An adapter around a LLaVA adapter; parameters keep the names they have without the wrapper.

    Args:
        lmm: LLaVA-1.5.

    Raises:
        ConfigError: Another family, a sliding window, or Conv-LoRA in the vision tower.
    """

    def __init__(self, lmm: LMMAdapter) -> None:
        super().__init__()
        if not isinstance(lmm, LlavaAdapter):
            raise ConfigError(
                f"the background cache reads LLaVA-1.5 (LlavaAdapter), not {type(lmm).__name__}"
            )
        if getattr(lmm.model.config.text_config, "sliding_window", None) is not None:
            raise ConfigError("the background cache needs a language model without a sliding window")
        if any(group.kind == "conv_lora" and group.part == "vision" for group in lmm.lora_groups.values()):
            raise ConfigError(
                "Conv-LoRA in the vision tower looks over the borders of groups; use plain LoRA"
            )
        # In a tuple: submodules of it would have a second name.
        self._wrapped = (lmm,)
        self.model = lmm.model
        self.lora_groups = lmm.lora_groups
        self.frozen = lmm.frozen

    @property
    def lmm(self) -> LlavaAdapter:
        """The wrapped adapter."""
        return self._wrapped[0]

    @property
    def num_layers(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.lmm.num_layers

    @property
    def hidden_size(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.lmm.hidden_size

    @property
    def position_limit(self) -> int | None:
        """Positions that prompt and answer may use together; None where the model does not say."""
        return self.lmm.position_limit

    @property
    def attention_channels(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.lmm.attention_channels

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See :class:`LMMAdapter`."""
        return self.lmm.attention_layers

    @property
    def attention_heads(self) -> tuple[int, ...]:
        """See :class:`LMMAdapter`."""
        return self.lmm.attention_heads

    @property
    def vision_channels(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.lmm.vision_channels

    @property
    def patch_size(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.lmm.patch_size

    @property
    def vision_grid(self) -> tuple[int, int]:
        """See :class:`LMMAdapter`."""
        return self.lmm.vision_grid

    @property
    def part_prefixes(self) -> dict[str, str]:
        """See :class:`LMMAdapter`."""
        return self.lmm.part_prefixes

    @property
    def device(self) -> torch.device:
        """See :class:`LMMAdapter`."""
        return self.lmm.device

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """See :class:`LMMAdapter`."""
        self.lmm.freeze_unread(vision_layers)

    @property
    def keeps_base(self) -> bool:
        """See :class:`LMMAdapter`: what was added beside the LLaVA may be trained, the LLaVA's own weights not."""
        changed = (
            name
            for name, parameter in self.named_parameters()
            if name.startswith("model.") and (parameter.requires_grad or name in self.checkpoint_buffers)
        )
        return not (self.merged or self.lmm.merged) and all(".lora_" in name for name in changed)

    @property
    def adapted(self) -> bool:
        """See :class:`LMMAdapter`: it reads images otherwise, trained or not."""
        return True

    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """See :class:`LMMAdapter`."""
        return self.lmm.class_embeddings(names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = float32_buffers(self)
        super()._apply(fn, recurse)
        restore_buffers(self, before)
        return self

    def train(self, mode: bool = True) -> Self:
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode."""
        super().train(mode)
        if self.frozen:
            for part in self.children():
                part.eval()
        return self
