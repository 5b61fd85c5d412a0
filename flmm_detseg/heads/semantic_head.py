"""Semantic segmentation on the vision features of the LMM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmseg.models.decode_heads.sep_aspp_head import DepthwiseSeparableASPPModule
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.base import Head
from flmm_detseg.heads.class_head import ClassHead
from flmm_detseg.heads.dense_graph import segmentation_graph
from flmm_detseg.heads.grids import OneGrid, by_grid, summed
from flmm_detseg.heads.neck import VisionNeck
from flmm_detseg.heads.open_classifier import OpenClassifier
from flmm_detseg.heads.seg_losses import IGNORE, SegmentationLoss
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, DenseTargets, Graph, GroundingBatch, LMMStates, Sample
from flmm_detseg.utils.finite import require_finite


class PyramidDecoder(nn.Module):
    """Light U-Net decoder over a pyramid, then atrous pooling at its finest level, all depthwise separable.

    Args:
        in_channels: C of every level.
        num_levels: Levels of the pyramid.
        num_classes: Classes.
        channels: Width of the decoder.
        rates: Dilations of the atrous branches, in cells of the finest level.
        text_channels: Width of text embeddings that the classes are found by (``num_classes`` then does not matter);
            None: fixed classes.

    Source: U-Net, arXiv 1505.04597; DeepLabv3+, arXiv 1802.02611 (separable atrous pooling).
    """

    def __init__(
        self,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        channels: int,
        rates: Sequence[int],
        text_channels: int | None = None,
    ) -> None:
        super().__init__()
        norm = dict(type="GN", num_groups=math.gcd(32, channels))
        self.lateral = nn.ModuleList(
            ConvModule(in_channels, channels, 1, norm_cfg=norm) for _ in range(num_levels)
        )
        self.merge = nn.ModuleList(
            DepthwiseSeparableConvModule(2 * channels, channels, 3, padding=1, norm_cfg=norm)
            for _ in range(num_levels - 1)
        )
        self.aspp = DepthwiseSeparableASPPModule(
            dilations=tuple(rates),
            in_channels=channels,
            channels=channels,
            conv_cfg=None,
            norm_cfg=norm,
            act_cfg=dict(type="ReLU"),
        )
        self.bottleneck = ConvModule(len(rates) * channels, channels, 1, norm_cfg=norm)
        self.classify = (
            nn.Conv2d(channels, num_classes, 1)
            if text_channels is None
            else OpenClassifier(channels, text_channels, channels=channels, prior=None)
        )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Logits ``[B, num_classes, h, w]`` at the finest level's size.

        Args:
            pyramid: Levels ``[B, C, h, w]``, highest resolution first.

        Returns:
            Class logits, one map per class.
        """
        skips = [lateral(maps) for lateral, maps in zip(self.lateral, pyramid)]
        maps = skips[-1]
        for skip, merge in zip(skips[-2::-1], self.merge):
            # Interpolated in float32: half precision has no bilinear kernel everywhere.
            up = F.interpolate(maps.float(), size=skip.shape[-2:], mode="bilinear", align_corners=False)
            maps = merge(torch.cat([skip, up.to(skip.dtype)], dim=1))
        return self.classify(self.bottleneck(torch.cat(self.aspp(maps), dim=1)))


@MODELS.register_module()
class SemanticSegHead(ClassHead[Tensor]):
    """A class for every pixel: pyramid, light decoder, Dice and Lovasz-Softmax.

    Args:
        neck: Pyramid.
        class_names: Classes in the order of the labels, at most 255; in a config also the name of a list
            (``"ade20k"``).
        channels: Width of the decoder.
        rates: Dilations of the atrous branches; those of DeepLab (6, 12, 18) are for maps larger than 64 cells.
        loss_stride: Pixels of the frame per cell of the map on which losses are computed; None is the finest level's
            stride. Smaller values cost memory and teach finer contours.
        dice_weight: Factor of the Dice loss; 0 leaves it out, as for the others.
        lovasz_weight: Factor of Lovasz-Softmax.
        ce_weight: Factor of the cross-entropy.
        boundary_weight: Factor of the boundary loss.
        classifier: ``"closed"``, or ``"open"``: pixels are compared with the LMM's embeddings of the classes' names,
            so others may take their place (:meth:`set_class_embeddings` must be given some before use). Every pixel
            gets one of them, also one that shows none of them.
        hidden_size: Width of the text embeddings, that of the LMM; follows from the LMM, open classifier only.

    Raises:
        ConfigError: No or too many classes, no rate, no loss, an unknown classifier, or an open one without
            ``hidden_size``.
    """

    tasks = frozenset({"segmentation", "joint"})
    result_of = frozenset({"segmentation"})

    def __init__(
        self,
        neck: VisionNeck,
        class_names: Sequence[str],
        channels: int = 128,
        rates: Sequence[int] = (1, 3, 6, 9),
        loss_stride: float | None = None,
        dice_weight: float = 1.0,
        lovasz_weight: float = 1.0,
        ce_weight: float = 0.0,
        boundary_weight: float = 0.0,
        classifier: str = "closed",
        hidden_size: int | None = None,
    ) -> None:
        super().__init__(class_names, classifier, hidden_size)
        _check_number(self.class_names)
        if not rates or min(rates) < 1:
            raise ConfigError(f"`rates` {tuple(rates)} must be positive, at least one")
        if not dice_weight + lovasz_weight + ce_weight > 0:
            raise ConfigError("one of dice_weight, lovasz_weight, ce_weight must be positive")
        self.neck = neck
        self.loss_stride = neck.strides[0] if loss_stride is None else loss_stride
        self.decoder = PyramidDecoder(
            neck.channels, len(neck.strides), len(self.class_names), channels, rates, self.text_channels
        )
        self.seg_loss = SegmentationLoss(dice_weight, lovasz_weight, ce_weight, boundary_weight)

    @property
    def open_classifier(self) -> OpenClassifier:
        """The decoder's."""
        assert isinstance(self.decoder.classify, OpenClassifier)
        return self.decoder.classify

    def set_class_embeddings(self, embeddings: Tensor, class_names: Sequence[str] | None = None) -> None:
        """See :class:`ClassHead`; at least two."""
        _check_number(self.class_names if class_names is None else class_names)
        super().set_class_embeddings(embeddings, class_names)

    def wants(self, sample: Sample) -> bool:
        """Joint samples only where they have a label map."""
        has_map = sample.dense is not None and sample.dense.semantic is not None
        return super().wants(sample) and (sample.task != "joint" or has_map)

    @property
    def capture(self) -> CaptureSpec:
        """Vision maps of the neck's layers."""
        return CaptureSpec(vision_layers=self.neck.vision_layers)

    @property
    def feature_neck(self) -> VisionNeck:
        """See :class:`Head`."""
        return self.neck

    def graphs(self) -> list[Graph]:
        """See :class:`Head`."""
        return [segmentation_graph(self.neck, self.decoder, self.class_names)]

    def num_targets(self, batch: GroundingBatch) -> int:
        """Images: losses are means over them."""
        return len(batch)

    def logits(self, states: LMMStates, batch: GroundingBatch) -> Tensor:
        """Class logits over the frame, float32 ``[B, classes, h, w]``, at the finest level's size.

        Args:
            states: With the neck's vision maps.
            batch: Images of one patch grid.

        Returns:
            Logits of every class.
        """
        return self.decoder(self.neck(states, batch)).float()

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Losses over the part of the frame that shows the image.

        Args:
            states: With the neck's vision maps.
            batch: Samples with label maps.

        Returns:
            The parts in use (``loss_dice``, ``loss_lovasz``, ``loss_ce``, ``loss_boundary``), ``accuracy`` and the
            gate's figures.

        Raises:
            DataError: A sample has no semantic map, one of another size, or a label that is no class.
        """
        parts = by_grid(states, batch)
        return summed([self._losses(part, len(part.batch) / len(batch)) for part in parts])

    def _losses(self, part: OneGrid, share: float) -> dict[str, Tensor]:
        """Figures of images of one grid, times their share of the batch."""
        logits = self.logits(part.states, part.batch)
        height, width = self.neck.frames(part.batch)[0].size
        size = (math.ceil(height / self.loss_stride), math.ceil(width / self.loss_stride))
        if size != tuple(logits.shape[-2:]):
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        result = self.seg_loss(logits, self.targets(part.batch, size).to(logits.device))
        figures = self.neck.statistics().items()
        result.update({name: torch.tensor(value, device=logits.device) for name, value in figures})
        return {name: share * value for name, value in result.items()}

    @property
    def teachable(self) -> bool:
        """See :class:`Head`."""
        return True

    def soft_losses(
        self, states: LMMStates, batch: GroundingBatch, teacher: Head[Any], teacher_states: LMMStates
    ) -> dict[str, Tensor]:
        """See :class:`Head`: ``KL(teacher || head)`` of the classes, mean over the cells that show the image."""
        assert isinstance(teacher, SemanticSegHead)  # a copy of this head
        total: Tensor | None = None
        for mine, theirs in zip(by_grid(states, batch), by_grid(teacher_states, batch), strict=True):
            with torch.no_grad():
                wanted = teacher.logits(theirs.states, theirs.batch).log_softmax(1)
            found = self.logits(mine.states, mine.batch).log_softmax(1)
            divergence = (wanted.exp() * (wanted - found)).sum(1)
            frames = self.neck.frames(mine.batch)
            for maps, frame in zip(divergence, frames, strict=True):
                nothing = torch.zeros(frame.image_size, dtype=torch.uint8)
                shown = frame.labels_into(nothing, tuple(maps.shape), IGNORE).to(maps.device) != IGNORE
                one = maps[shown].sum() / (shown.sum().clamp(min=1) * len(batch))
                total = one if total is None else total + one
        assert total is not None  # a batch holds a sample
        return {"loss_soft_classes": total}

    @torch.no_grad()
    def pseudo_labelled(self, states: LMMStates, batch: GroundingBatch, threshold: float) -> GroundingBatch:
        """See :class:`Head`: the most likely class of every pixel, unknown where its probability is lower."""
        rows: dict[int, Sample] = {}
        for part in by_grid(states, batch):
            maps = self.logits(part.states, part.batch)
            for place, logits, frame in zip(part.places, maps, self.neck.frames(part.batch), strict=True):
                window = frame.crop(resize_maps(logits, frame.size))
                sure, labels = resize_maps(window, frame.image_size).softmax(0).max(0)
                labels = torch.where(sure >= threshold, labels, torch.full_like(labels, IGNORE))
                dense = DenseTargets(semantic=labels.to(torch.uint8).cpu().numpy())
                rows[place] = replace(batch.samples[place], dense=dense)
        return GroundingBatch([rows[place] for place in range(len(batch))], batch.inputs)

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """The class of every pixel, per sample int64 ``[H, W]`` at the original size."""
        return self._of_logits(states, batch, lambda logits: logits.argmax(0))

    @torch.no_grad()
    def class_probabilities(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """See :class:`Head`: the softmax of the logits, enlarged."""
        return self._of_logits(states, batch, lambda logits: logits.softmax(0))

    def _of_logits(
        self, states: LMMStates, batch: GroundingBatch, function: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """What a function makes of the logits ``[C, H, W]`` of each sample; they are not kept."""
        found: dict[int, Tensor] = {}
        for part in by_grid(states, batch):
            logits = self.logits(part.states, part.batch)
            require_finite("class logits", [sample.record_id for sample in part.batch.samples], [logits])
            for place, maps, frame in zip(part.places, logits, self.neck.frames(part.batch), strict=True):
                window = frame.crop(resize_maps(maps, frame.size))
                found[place] = function(resize_maps(window, frame.image_size))
        return [found[place] for place in range(len(batch))]

    def targets(self, batch: GroundingBatch, map_size: tuple[int, int]) -> Tensor:
        """Semantic maps over the frame, uint8 ``[B, h, w]`` on the CPU; 255 outside the image.

        Args:
            batch: Samples with label maps; images of one patch grid.
            map_size: ``(h, w)`` of the maps over the frame.

        Returns:
            Class numbers, 255 also where the semantic map says unknown.

        Raises:
            DataError: As :meth:`loss`.
        """
        rows = []
        for sample, frame in zip(batch.samples, self.neck.frames(batch)):
            if sample.dense is None or sample.dense.semantic is None:
                raise DataError(
                    f"{sample.record_id}: no semantic map; segmentation needs it (`Sample.dense`), 255 where unknown"
                )
            labels = torch.from_numpy(sample.dense.semantic)
            if tuple(labels.shape) != sample.image_size:
                raise DataError(
                    f"{sample.record_id}: semantic map of {tuple(labels.shape)}, image of {sample.image_size}"
                )
            known = labels[labels != IGNORE]
            if len(known) and int(known.max()) >= len(self.class_names):
                raise DataError(
                    f"{sample.record_id}: semantic label {int(known.max())}, but the head has "
                    f"{len(self.class_names)} classes (255 is unknown)"
                )
            rows.append(frame.labels_into(labels, map_size, IGNORE))
        return torch.stack(rows)


def _check_number(class_names: Sequence[str]) -> None:
    if not 2 <= len(class_names) <= IGNORE:
        raise ConfigError(f"{len(class_names)} semantic classes; give 2 to {IGNORE}")
