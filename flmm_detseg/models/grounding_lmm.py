"""The assembly: one LMM, any heads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModel
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import Head
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.models.build import build_lmm, build_part
from flmm_detseg.models.checkpoint import load_tensors, trainable_tensors
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates, Prediction, Sample


@MODELS.register_module()
class GroundingLMM(BaseModel):
    """An LMM whose captured states are read by heads.

    Args:
        lmm: Adapter, or its config.
        heads: Heads by name, or their configs; the name is the prefix of losses and parameters (``heads.NAME.*``).
            Sizes that follow from the LMM may be left out.
        freeze: Prefixes of head parameters that are not trained, e.g. ``["phrase.mask_head"]``.

    Raises:
        ConfigError: A part cannot be built; names its key.
    """

    def __init__(
        self,
        lmm: Mapping[str, Any] | LMMAdapter,
        heads: Mapping[str, Mapping[str, Any] | Head],
        freeze: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.lmm = build_lmm(lmm)
        if not heads:
            raise ConfigError("`model.heads` is empty; a GroundingLMM needs at least one head")
        parts = {name: build_part(part, self.lmm, f"model.heads.{name}") for name, part in heads.items()}
        self.heads = nn.ModuleDict(parts)
        for prefix in freeze:
            frozen = [p for name, p in self.heads.named_parameters() if name.startswith(prefix)]
            if not frozen:
                raise ConfigError(f"`model.freeze`: no head parameter starts with {prefix!r}")
            for parameter in frozen:
                parameter.requires_grad_(False)

    @property
    def capture(self) -> CaptureSpec:
        """Union of what the heads ask for."""
        spec = CaptureSpec()
        for head in self.heads.values():
            spec = spec.union(head.capture)
        return spec

    def forward(
        self, samples: list[Sample], mode: str = "tensor"
    ) -> dict[str, Tensor] | list[Prediction] | LMMStates:
        """MMEngine's entry.

        Args:
            samples: Records as data sets give them.
            mode: ``"loss"``, ``"predict"`` or ``"tensor"`` (the captured states).
        """
        if mode == "loss":
            return self.loss(samples)
        if mode == "predict":
            return self.predict(samples)
        if mode == "tensor":
            return self.encode(self.prepare(samples))
        raise ConfigError(f"mode {mode!r} is none of loss, predict, tensor")

    def loss(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Losses and logged figures of every head, as ``HEAD.NAME``.

        With several processes a head's figures are scaled by the process's share of the global batch's targets, so
        that their mean over processes, and the gradient, is that of one process with the whole batch.
        """
        batch = self.prepare(samples)
        states = self.encode(batch)
        losses: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            share = self._share(head.num_targets(batch))
            losses.update({f"{name}.{key}": share * value for key, value in head.loss(states, batch).items()})
        return losses

    def _share(self, num_targets: int) -> float:
        """This process's number of targets, divided by the mean over processes."""
        if get_world_size() == 1:
            return 1.0
        total = torch.tensor(float(num_targets), device=self.lmm.device)
        all_reduce(total, op="mean")
        return num_targets / max(float(total), 1e-6)

    @torch.no_grad()
    def predict(self, samples: list[Sample], *, keep_attention: bool = False) -> list[Prediction]:
        """Predictions of the phrase head, one per sample, in order.

        Args:
            samples: Records; masks are not needed.
            keep_attention: Put the attention stack into each prediction, whatever the head is set to.
        """
        batch = self.prepare(samples)
        states = self.encode(batch)
        predictions = self.heads["phrase"].predict(states, batch)
        if keep_attention:
            for prediction, attention in zip(predictions, states.attention, strict=True):
                prediction.attention = attention
        return predictions

    def prepare(self, samples: list[Sample]) -> GroundingBatch:
        """Tokens, pixels and geometry of every sample (CPU)."""
        return GroundingBatch(list(samples), [self.lmm.prepare(sample) for sample in samples])

    def encode(self, batch: GroundingBatch) -> LMMStates:
        """One LMM pass over the batch; images that several samples share run once."""
        return self.lmm.encode(batch.inputs, self.capture, [sample.image_id for sample in batch.samples])

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds: every parameter with ``requires_grad``, by full name."""
        return trainable_tensors(self)

    def load_trainable(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        """Loads what :meth:`trainable_state_dict` gave; also a published F-LMM state dict.

        Args:
            state_dict: Tensors by name.
            source: File the tensors came from, for errors.

        Raises:
            CheckpointError: Keys are missing, unexpected or of another shape; lists them.
        """
        load_tensors(self, state_dict, source)

    def frozen_fingerprint(self) -> str:
        """sha256 over the LMM's frozen parameters and its buffers: equal if and only if every bit is."""
        digest = hashlib.sha256()
        frozen = [(name, p.detach()) for name, p in self.lmm.named_parameters() if not p.requires_grad]
        for name, tensor in sorted([*frozen, *self.lmm.named_buffers()], key=lambda item: item[0]):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
