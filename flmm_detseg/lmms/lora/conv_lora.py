"""Conv-LoRA: low-rank features of a vision transformer's linear pass convolution experts of several scales.

Linear LoRA mixes channels of one token; dense tasks want a local prior too. Between A and B the r channels are laid out
as a map, a gate sends each image to experts that convolve at their own scale, and the result is added.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.ops.load_balance import load_balance


class ConvLoRADown(nn.Linear):
    """A of a LoRA layer with its experts: ``x -> h + sum_e p_e E_e(h)``, h = A x; B follows it, zero at first.

    The gate is a softmax over all experts of the mean of h over the patches. The ``top_k`` experts of an image run,
    each multiplied by its probability of the full softmax, so that the task loss reaches the gate (a softmax over the
    kept ones only would be 1 for one expert, whatever the gate says). A class token before the patches gets h alone.

    Args:
        down: The A that it replaces; its weight is taken over.
        grid: ``(rows, cols)`` of patches.
        num_experts: M; expert i works at i times the resolution, i = 1..M.
        top_k: Experts an image is sent to, 1..M (M: soft routing).

    Raises:
        ConfigError: ``top_k`` is not within 1..M.

    Source: Zhong et al., Convolution Meets LoRA, ICLR 2024, section 3; the gate as in Switch Transformers, arXiv
    2101.03961, section 2.
    """

    def __init__(
        self, down: nn.Linear, grid: tuple[int, int], *, num_experts: int = 8, top_k: int = 1
    ) -> None:
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"Conv-LoRA `top_k` is {top_k}; 1..{num_experts} (`num_experts`) are possible")
        rank = down.out_features
        place: dict[str, Any] = {"device": down.weight.device, "dtype": down.weight.dtype}
        super().__init__(down.in_features, rank, bias=False, **place)
        self.weight = down.weight
        self.grid = grid
        self.top_k = top_k
        self.gate = nn.Linear(rank, num_experts, bias=False, **place)
        self.experts = nn.ModuleList(nn.Conv2d(rank, rank, 3, padding=1, **place) for _ in range(num_experts))
        for expert in self.experts:
            nn.init.zeros_(expert.get_parameter("bias"))
        self.balance: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Args: ``x`` ``[B, prefix + rows * cols, d]``. Returns ``[B, prefix + rows * cols, r]``."""
        h = super().forward(x)
        rows, cols = self.grid
        prefix = h.shape[1] - rows * cols
        if h.ndim != 3 or prefix not in (0, 1):
            raise ConfigError(
                f"Conv-LoRA was built for {rows} x {cols} patches (with or without a class token), but got "
                f"{tuple(x.shape)}; it belongs on linears that see the vision tower's tokens"
            )
        patches = h[:, prefix:]
        probabilities = self.gate(patches.mean(1)).float().softmax(-1)
        kept = torch.zeros_like(probabilities).scatter(1, probabilities.topk(self.top_k).indices, 1.0)
        self.balance = (
            load_balance(probabilities, kept) if self.training and torch.is_grad_enabled() else None
        )
        maps = patches.mT.unflatten(2, self.grid)
        mixed = self._mix(maps, probabilities * kept, kept.bool())
        return h + F.pad(mixed.flatten(2).mT, (0, 0, prefix, 0))

    def _mix(self, maps: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        """Sum of the kept experts' maps, ``[B, r, rows, cols]``; an expert sees only the images sent to it."""
        total = torch.zeros_like(maps)
        for index, expert in enumerate(self.experts):
            images = kept[:, index].nonzero().flatten()
            if len(images) == 0:
                # Part of the graph all the same: distributed training waits for every parameter's gradient.
                total = total + 0.0 * sum(parameter.sum() for parameter in expert.parameters())
                continue
            output = self._expert(expert, maps[images], index + 1)
            weight = weights[images, index].to(output.dtype)[:, None, None, None]
            total = total.index_add(0, images, (weight * output).to(total.dtype))
        return total

    def _expert(self, expert: nn.Module, maps: Tensor, scale: int) -> Tensor:
        if scale == 1:
            return F.gelu(expert(maps))
        rows, cols = self.grid
        larger = F.interpolate(maps, size=(rows * scale, cols * scale), mode="bicubic", align_corners=False)
        return F.interpolate(F.gelu(expert(larger)), size=self.grid, mode="bicubic", align_corners=False)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor of a running graph cannot be copied with the module.
        return {**self.__dict__, "balance": None}


def balance_losses(module: nn.Module) -> dict[str, Tensor]:
    """Balance losses of the last forward pass by name of the Conv-LoRA layer.

    Empty without autograd, in eval mode and where there is no Conv-LoRA.
    """
    layers = {name: child for name, child in module.named_modules() if isinstance(child, ConvLoRADown)}
    return {name: layer.balance for name, layer in layers.items() if layer.balance is not None}
