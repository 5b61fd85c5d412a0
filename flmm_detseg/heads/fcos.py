"""mmdet's FCOS on the frame of dense heads: fractional strides, weighted objects, ignored regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import Scale
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from flmm_detseg.heads.open_classifier import OpenClassifier

_INF = 1e8
_PRIOR = 0.01  # probability of an object at the start (focal loss)


class Objects(NamedTuple):
    """Targets of one image, in pixels of the frame.

    Attributes:
        boxes_xyxy: float32 ``[N, 4]``.
        labels: int64 ``[N]``.
        weights: float32 ``[N]``.
        ignored_xyxy: float32 ``[M, 4]``: regions where nothing is learned but objects of the list.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    weights: Tensor
    ignored_xyxy: Tensor


class Assignment(NamedTuple):
    """What every point of a batch is to learn; P points, level by level, images within a level.

    Attributes:
        labels: int64 ``[P]``, number of classes for background.
        distances: float32 ``[P, 4]``, left, top, right, bottom in units of the level's stride.
        weights: float32 ``[P]``: of the object; 1 for background, 0 inside an ignored region.
        positive: int64 ``[P+]``, indices of points on an object.
    """

    labels: Tensor
    distances: Tensor
    weights: Tensor
    positive: Tensor


class FrameFCOS(FCOSHead):
    """FCOS with centre sampling, normalised distances, centreness on the regression branch, focal and GIoU loss.

    Different from mmdet's: distances come out in units of the stride in training and evaluation mode alike; objects
    have weights and crowds are left out; the box loss is divided by the number of positives like the others (the
    paper's equation 2), not by their sum of centreness, and by this process's only. So every term is a mean over
    positives, and the share of a process in a global batch is its number of positives.

    Args:
        num_classes: Classes at the start.
        in_channels: C of the pyramid.
        strides: Pixels per cell of each level, ascending.
        feat_channels: Width of the towers.
        stacked_convs: Depth of the towers.
        range_factor: A level takes objects that reach at most this many strides from the point (the last: any).
        centre_radius: Points within this many strides of an object's centre are positives.
        box_weight: Factor of the box loss.
        centreness_weight: Factor of the centreness loss.
        class_weight: Factor of the classification loss.
        text_channels: Width of text embeddings for the open classifier; None for one learned filter per class.

    Source: FCOS, arXiv 1904.01355; its improvements, arXiv 2006.09214.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        strides: Sequence[float],
        feat_channels: int,
        stacked_convs: int,
        range_factor: float,
        centre_radius: float,
        box_weight: float,
        centreness_weight: float,
        class_weight: float,
        text_channels: int | None,
    ) -> None:
        bounds = [-1.0, *(range_factor * stride for stride in strides[:-1]), _INF]
        self.text_channels = text_channels
        # Classes, not names: names would be looked up in whatever scope a runner has made the default.
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            feat_channels=feat_channels,
            stacked_convs=stacked_convs,
            strides=tuple(strides),
            regress_ranges=tuple(zip(bounds, bounds[1:])),
            center_sampling=True,
            center_sample_radius=centre_radius,
            norm_on_bbox=True,
            centerness_on_reg=True,
            loss_cls=dict(type=FocalLoss, use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=class_weight),
            loss_bbox=dict(type=GIoULoss, loss_weight=box_weight),
            loss_centerness=dict(type=CrossEntropyLoss, use_sigmoid=True, loss_weight=centreness_weight),
            bbox_coder=dict(type=DistancePointBBoxCoder),
            norm_cfg=dict(type="GN", num_groups=math.gcd(32, feat_channels)),
            init_cfg=None,
        )
        self._init_parameters()

    def _init_predictor(self) -> None:
        super()._init_predictor()
        if self.text_channels is not None:
            self.conv_cls = OpenClassifier(
                self.feat_channels, self.text_channels, channels=self.feat_channels, prior=_PRIOR
            )

    def _init_parameters(self) -> None:
        """The start of mmdet (normal 0.01), done here because its own ``init_weights`` needs real tensors."""
        own = [module for name, module in self.named_modules() if not name.startswith("conv_cls.")]
        for module in own:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.text_channels is None:
            bias = self.conv_cls.bias
            assert bias is not None  # a convolution has one
            nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))
        # Distances are cut at zero, where no gradient passes: start clearly above, with boxes of four strides.
        nn.init.constant_(self.conv_reg.bias, 2.0)

    def forward_single(self, x: Tensor, scale: Scale, stride: float) -> tuple[Tensor, Tensor, Tensor]:
        """One level: class logits, distances in strides (>= 0), centreness logits, float32."""
        logits, distances, _, features = super(FCOSHead, self).forward_single(x)
        distances = scale(distances).float().clamp(min=0)
        return logits.float(), distances, self.conv_centerness(features).float()

    def assign(self, map_sizes: Sequence[tuple[int, int]], images: Sequence[Objects]) -> Assignment:
        """Targets of all points of a batch, on the targets' device.

        Args:
            map_sizes: ``(h, w)`` of every level.
            images: Targets per image.

        Returns:
            Labels, distances and weights of the points of all images.
        """
        device = images[0].boxes_xyxy.device
        points = self.prior_generator.grid_priors(map_sizes, dtype=torch.float32, device=device)
        # mmdet assigns labels to points; with an object's number in the batch as its label, a point names its object.
        first = self.num_classes + 1
        labelled = []
        for objects in images:
            last = first + len(objects.labels)
            index = torch.arange(first, last, device=device)
            labelled.append(InstanceData(bboxes=objects.boxes_xyxy, labels=index))
            first = last
        owners, distances = (torch.cat(levels) for levels in self.get_targets(points, labelled))
        positive = (owners > self.num_classes).nonzero()[:, 0]
        owner = owners[positive] - (self.num_classes + 1)
        labels = torch.full_like(owners, self.num_classes)
        labels[positive] = torch.cat([objects.labels for objects in images])[owner]
        # Points inside a crowd are ignored, unless an object is there.
        weights = torch.cat(
            [(~_inside(level, objects.ignored_xyxy)).float() for level in points for objects in images]
        )
        weights[positive] = torch.cat([objects.weights for objects in images])[owner]
        return Assignment(labels, distances, weights, positive)

    def losses(
        self,
        logits: Sequence[Tensor],
        distances: Sequence[Tensor],
        centreness: Sequence[Tensor],
        images: Sequence[Objects],
        count: int | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch; first three arguments are what :meth:`forward` gives.

        Args:
            logits: Per level ``[B, classes, h, w]``.
            distances: Per level ``[B, 4, h, w]``.
            centreness: Per level ``[B, 1, h, w]``.
            images: Targets per image.
            count: What sums are divided by; None: the number of positives, at least 1.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness``: sums over points, divided by ``count``.
        """
        map_sizes = [(maps.shape[-2], maps.shape[-1]) for maps in logits]
        assignment = self.assign(map_sizes, images)
        if count is None:
            count = max(1, len(assignment.positive))
        flat_logits, flat_distances, flat_centreness = map(_flatten, (logits, distances, centreness))
        # One-hot targets: label indices would need mmcv's compiled operator on a GPU.
        one_hot = nn.functional.one_hot(assignment.labels, self.num_classes + 1)[:, :-1]
        loss_cls = self.loss_cls(flat_logits, one_hot, weight=assignment.weights, avg_factor=count)

        index = assignment.positive
        predicted, wanted = flat_distances[index], assignment.distances[index]
        target = self.centerness_target(wanted)
        weights = assignment.weights[index]
        # GIoU does not depend on where the boxes are nor on their unit, so points and strides can stay out.
        origin = predicted.new_zeros(len(index), 2)
        loss_bbox = self.loss_bbox(
            self.bbox_coder.decode(origin, predicted),
            self.bbox_coder.decode(origin, wanted),
            weight=target * weights,
            avg_factor=count,
        )
        loss_centreness = self.loss_centerness(
            flat_centreness[index, 0], target, weight=weights, avg_factor=count
        )
        return {"loss_cls": loss_cls, "loss_bbox": loss_bbox, "loss_centerness": loss_centreness}

    def soft_losses(
        self,
        own: Sequence[Sequence[Tensor]],
        wanted: Sequence[Sequence[Tensor]],
        count: int,
    ) -> dict[str, Tensor]:
        """Distance of outputs from a teacher's, over all points, sums divided by ``count``; 0 where they are equal.

        Classes: cross-entropy with the teacher's probabilities, each weighted by the square of the difference. Boxes
        (GIoU) and centreness (Kullback-Leibler divergence) count as much as the teacher believes in an object there:
        its largest class probability times its centreness.

        Args:
            own: Class logits, distances and centreness logits by level, as :meth:`forward` gives them.
            wanted: The teacher's.
            count: What sums are divided by.

        Returns:
            ``loss_soft_cls``, ``loss_soft_bbox``, ``loss_soft_centerness``, with the factors of the other losses.

        Source: quality focal loss, Li et al., arXiv 2006.04388, equation 2 with beta 2.
        """
        logits, distances, centreness = map(_flatten, own)
        soft, boxes, centres = (_flatten(levels).detach() for levels in wanted)
        probability, centred = soft.sigmoid(), centres[:, 0].sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits, probability, reduction="none")
        loss_cls = (cross * (logits.sigmoid() - probability) ** 2).sum() / count
        trust = probability.amax(1) * centred
        origin = distances.new_zeros(len(distances), 2)
        loss_bbox = self.loss_bbox(
            self.bbox_coder.decode(origin, distances),
            self.bbox_coder.decode(origin, boxes),
            weight=trust,
            avg_factor=count,
        )
        surprise = F.binary_cross_entropy_with_logits(centreness[:, 0], centred, reduction="none")
        own_entropy = F.binary_cross_entropy_with_logits(centres[:, 0], centred, reduction="none")
        loss_centreness = (trust * (surprise - own_entropy)).sum() / count
        return {
            "loss_soft_cls": self.loss_cls.loss_weight * loss_cls,
            "loss_soft_bbox": loss_bbox,
            "loss_soft_centerness": self.loss_centerness.loss_weight * loss_centreness,
        }

    def candidates(
        self,
        logits: Sequence[Tensor],
        distances: Sequence[Tensor],
        centreness: Sequence[Tensor],
        frame_sizes: Sequence[tuple[int, int]],
        score_threshold: float,
        per_level: int,
    ) -> list[InstanceData]:
        """Boxes before suppression: ``bboxes`` in pixels of the frame, ``scores`` (class times centreness), ``labels``.

        Args:
            logits: Of :meth:`forward`, as the two after it.
            distances: In strides.
            centreness: Logits.
            frame_sizes: ``(H, W)`` per image; boxes are cut off at the frame.
            score_threshold: Least class probability.
            per_level: Most candidates of a level.

        Returns:
            Per image ``bboxes`` float32 ``[n, 4]`` (xyxy), ``scores`` float32 ``[n]`` in [0, 1] and ``labels`` int64
            ``[n]``.
        """
        pixels = [maps * stride for maps, stride in zip(distances, self.strides)]
        settings = ConfigDict(score_thr=score_threshold, nms_pre=per_level, min_bbox_size=-1)
        metas = [dict(img_shape=size) for size in frame_sizes]
        return self.predict_by_feat(
            list(logits), pixels, list(centreness), batch_img_metas=metas, cfg=settings, with_nms=False
        )


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """``[B, C, h, w]`` per level -> ``[P, C]`` in the order of :class:`Assignment`."""
    return torch.cat([maps.permute(0, 2, 3, 1).flatten(0, 2) for maps in levels])


def _inside(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Whether points ``[P, 2]`` (x, y) lie in any of the boxes ``[M, 4]``: bool ``[P]``."""
    after = points[:, None] >= boxes_xyxy[None, :, :2]
    before = points[:, None] < boxes_xyxy[None, :, 2:]
    return (after & before).all(-1).any(-1)
