"""Mask losses and the figures logged beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.losses import CrossEntropyLoss, DiceLoss
from torch import Tensor, nn

from flmm_detseg.ops.masks import mask_iou


class MaskLoss(nn.Module):
    """Binary cross-entropy plus naive dice over the masks of a batch whose samples differ in size.

    Each figure is a mean within a sample, and the samples are averaged with their number of masks as weight:
    every mask counts the same, whatever the size of its image.

    Args:
        mask_weight: Factor of the cross-entropy (mean over pixels).
        dice_weight: Factor of the dice loss (``1 - (2 |ab| + 1) / (|a| + |b| + 1)`` per mask).

    Source: F-LMM, arXiv 2406.05821, section 3.4.
    """

    def __init__(self, mask_weight: float = 1.0, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropyLoss(use_sigmoid=True, reduction="mean", loss_weight=mask_weight)
        self.dice = DiceLoss(
            use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=dice_weight
        )

    def forward(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Figures of a batch.

        Args:
            logits: Per sample ``[K_i, h_i, w_i]``; K_i may be 0.
            targets: Per sample bool ``[K_i, h_i, w_i]``.

        Returns:
            Scalars ``loss_mask``, ``loss_dice``, and without gradient ``accuracy`` (of pixels at probability
            0.5) and ``aiou`` (mean IoU at 0.5), all float32; zeros where the batch has no mask.
        """
        counts = logits[0].new_tensor([len(maps) for maps in logits], dtype=torch.float32)
        rows = [self._sample(maps.float(), masks) for maps, masks in zip(logits, targets)]
        names = ("loss_mask", "loss_dice", "accuracy", "aiou")
        weights = counts / counts.sum().clamp(min=1)
        return {name: (weights * torch.stack(values)).sum() for name, values in zip(names, zip(*rows))}

    def _sample(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if len(logits) == 0:
            nothing = logits.sum()  # zero, but part of the graph
            return nothing, nothing, nothing.detach(), nothing.detach()
        predicted = logits.detach() > 0
        accuracy = (predicted == targets).float().mean()
        aiou = mask_iou(predicted, targets).mean()
        return self.cross_entropy(logits, targets), self.dice(logits, targets), accuracy, aiou
