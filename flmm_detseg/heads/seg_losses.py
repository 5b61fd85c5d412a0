"""Losses of semantic segmentation. Logits ``[C, h, w]`` and labels ``[h, w]`` of one image; 255 is unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models.losses import LovaszLoss
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

IGNORE = 255


def dice_loss(logits: Tensor, labels: Tensor, eps: float = 1.0) -> Tensor:
    """Soft Dice, mean over the classes that the image shows.

    ``1 - (2 sum(p t) + eps) / (sum(p) + sum(t) + eps)`` per class, sums over known pixels, p from a softmax.

    Args:
        logits: ``[C, h, w]``.
        labels: Integer ``[h, w]``, at least one known.
        eps: Smooths classes of few pixels.

    Returns:
        Scalar, float32.

    Source: V-Net, arXiv 1606.04797 (with plain instead of squared sums).
    """
    known = labels != IGNORE
    truth = labels[known].long()
    present = truth.unique()
    probability = logits.float().softmax(0)[:, known][present]
    target = (truth[None] == present[:, None]).float()
    overlap = (probability * target).sum(1)
    return (1 - (2 * overlap + eps) / (probability.sum(1) + target.sum(1) + eps)).mean()


def boundary_maps(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Signed distance of every pixel to the boundary of every class, in units of the map's longer side.

    The boundary runs between pixels: the nearest pixel of the class is half a pixel farther than it, and so is, from
    inside, the nearest known pixel of another class.

    Args:
        labels: Integer ``[h, w]``; 255 where unknown (neither class nor not).
        classes: K classes that occur.

    Returns:
        float32 ``[K, h, w]``: negative inside, positive outside; 0 everywhere for a class without a boundary.
    """
    maps = np.zeros((len(classes), *labels.shape), dtype=np.float32)
    for row, index in enumerate(classes):
        inside = labels == index
        others = ~inside & (labels != IGNORE)
        if others.any():
            outer = distance_transform_edt(~inside) - 0.5
            inner = distance_transform_edt(~others) - 0.5
            maps[row] = np.where(inside, -inner, outer)
    return maps / max(labels.shape)


def boundary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of probability times signed distance to the class's boundary, over known pixels and present classes.

    May be negative: a perfect prediction collects the distances inside. Makes sense beside a region loss only.

    Args:
        logits: ``[C, h, w]``.
        labels: Integer ``[h, w]``, at least one known.

    Returns:
        Scalar, float32.

    Source: Kervadec et al., Boundary loss for highly unbalanced segmentation, arXiv 1812.07032.
    """
    known = labels != IGNORE
    present = labels[known].unique()
    maps = boundary_maps(labels.cpu().numpy(), present.tolist())
    distances = torch.from_numpy(maps).to(logits.device)
    probability = logits.float().softmax(0)[present.long()]
    return (probability * distances)[:, known].mean()


class SegmentationLoss(nn.Module):
    """Weighted sum of the parts, every image by itself, then the mean over images.

    Images by themselves, so that a batch may be cut between processes or accumulated without changing the sum.

    Args:
        dice_weight: Factor of :func:`dice_loss`.
        lovasz_weight: Factor of Lovasz-Softmax (mmseg's, classes present).
        ce_weight: Factor of the cross-entropy, mean over known pixels.
        boundary_weight: Factor of :func:`boundary_loss`.

    A factor of 0 leaves the part out.

    Source: Lovasz-Softmax, arXiv 1705.08790.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        lovasz_weight: float = 1.0,
        ce_weight: float = 0.0,
        boundary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.weights = {
            "loss_dice": dice_weight,
            "loss_lovasz": lovasz_weight,
            "loss_ce": ce_weight,
            "loss_boundary": boundary_weight,
        }
        # Images come one at a time, so "over the batch" is over one image; mmseg then wants reduction "none".
        self.lovasz = LovaszLoss(loss_type="multi_class", per_image=False, reduction="none")

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Figures of a batch.

        Args:
            logits: ``[B, C, h, w]``.
            labels: Integer ``[B, h, w]``.

        Returns:
            The parts in use as ``loss_*`` and, without gradient, ``accuracy`` over known pixels; float32 scalars.
            Images of fewer than two known pixels count as zeros.
        """
        rows = [self._image(maps.float(), wanted) for maps, wanted in zip(logits, labels)]
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def _image(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        names = [name for name, weight in self.weights.items() if weight]
        known = labels != IGNORE
        if int(known.sum()) < 2:  # mmseg's Lovasz takes one pixel for a vector of classes
            nothing = (logits * 0).sum()
            return {**{name: nothing for name in names}, "accuracy": nothing.detach()}
        parts = {name: self.weights[name] * self._part(name, logits, labels) for name in names}
        correct = logits.detach().argmax(0)[known] == labels[known]
        return {**parts, "accuracy": correct.float().mean()}

    def _part(self, name: str, logits: Tensor, labels: Tensor) -> Tensor:
        if name == "loss_dice":
            return dice_loss(logits, labels)
        if name == "loss_boundary":
            return boundary_loss(logits, labels)
        if name == "loss_ce":
            return F.cross_entropy(logits[None], labels[None].long(), ignore_index=IGNORE)
        return self.lovasz(logits[None], labels[None], ignore_index=IGNORE)
