"""Object detection on the vision features of the LMM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from torch import Tensor, nn

from flmm_detseg.errors import DataError
from flmm_detseg.heads.base import Head
from flmm_detseg.heads.class_head import ClassHead
from flmm_detseg.heads.dense_graph import detection_graph
from flmm_detseg.heads.fcos import FrameFCOS, Objects
from flmm_detseg.heads.frame import Frame
from flmm_detseg.heads.grids import OneGrid, by_grid, same_grid, summed
from flmm_detseg.heads.neck import VisionNeck
from flmm_detseg.heads.open_classifier import OpenClassifier
from flmm_detseg.ops.masks import above, pieces
from flmm_detseg.refiners import Refiner
from flmm_detseg.refiners.decoder_graph import decoder_graphs
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, DenseTargets, Graph, GroundingBatch, LMMStates, Sample
from flmm_detseg.utils.finite import require_finite


@MODELS.register_module()
class DetectionHead(ClassHead[InstanceData]):
    """FCOS on a pyramid of vision maps; boxes in original image pixels, instance masks through SAM.

    Args:
        neck: Pyramid; its strides set those of FCOS and the sizes each level is responsible for.
        class_names: Classes in the order of the labels; in a config also the name of a list (``"coco"``).
        classifier: ``"closed"`` (one learned filter per class) or ``"open"`` (similarity to text embeddings, which
            :meth:`set_class_embeddings` must be given before use).
        hidden_size: Width of the text embeddings, that of the LMM; follows from the LMM, open classifier only.
        sam: A refiner of the head's own that makes masks of predicted boxes; frozen. None: boxes only, unless the head
            is lent another one's (:meth:`borrow_sam`).
        feat_channels: Width of FCOS's towers.
        stacked_convs: Depth of FCOS's towers.
        range_factor: See :class:`~flmm_detseg.heads.fcos.FrameFCOS`, as the next four.
        centre_radius: In strides.
        class_weight: Factor of the focal loss.
        box_weight: Factor of the GIoU loss.
        centreness_weight: Factor of the centreness loss.
        score_threshold: Least class probability of a prediction.
        nms_iou: Of two boxes of a class that overlap by more, the better stays.
        candidates_per_level: Most boxes of a level before suppression.
        max_per_image: Most boxes of an image after it.

    Raises:
        ConfigError: No classes, a class twice, an unknown classifier, or an open one without ``hidden_size``.

    Source: FCOS, arXiv 1904.01355.
    """

    tasks = frozenset({"detection", "joint"})
    result_of = frozenset({"detection"})

    def __init__(
        self,
        neck: VisionNeck,
        class_names: Sequence[str],
        classifier: str = "closed",
        hidden_size: int | None = None,
        sam: Refiner | None = None,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        range_factor: float = 8.0,
        centre_radius: float = 1.5,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        centreness_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_iou: float = 0.6,
        candidates_per_level: int = 1000,
        max_per_image: int = 100,
    ) -> None:
        super().__init__(class_names, classifier, hidden_size)
        self.neck = neck
        self.sam = sam.requires_grad_(False) if sam is not None else None
        self._borrowed: tuple[Refiner, ...] = ()
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates_per_level = candidates_per_level
        self.max_per_image = max_per_image
        self.fcos = FrameFCOS(
            num_classes=len(self.class_names),
            in_channels=neck.channels,
            strides=neck.strides,
            feat_channels=feat_channels,
            stacked_convs=stacked_convs,
            range_factor=range_factor,
            centre_radius=centre_radius,
            box_weight=box_weight,
            centreness_weight=centreness_weight,
            class_weight=class_weight,
            text_channels=self.text_channels,
        )

    def wants(self, sample: Sample) -> bool:
        """Joint samples only where they have boxes."""
        has_boxes = sample.dense is not None and sample.dense.boxes_xyxy is not None
        return super().wants(sample) and (sample.task != "joint" or has_boxes)

    @property
    def capture(self) -> CaptureSpec:
        """Vision maps of the neck's layers."""
        return CaptureSpec(vision_layers=self.neck.vision_layers)

    @property
    def feature_neck(self) -> VisionNeck:
        """See :class:`Head`."""
        return self.neck

    def graphs(self) -> list[Graph]:
        """See :class:`Head`; and the decoder of a refiner of its own."""
        own = [] if self.sam is None else decoder_graphs(self.sam)
        limits = {
            "score_threshold": self.score_threshold,
            "candidates_per_level": self.candidates_per_level,
            "nms_iou": self.nms_iou,
            "max_per_image": self.max_per_image,
        }
        return [detection_graph(self.neck, self.fcos, self.class_names, limits), *own]

    @property
    def open_classifier(self) -> OpenClassifier:
        """FCOS's."""
        found: OpenClassifier = self.fcos.conv_cls
        return found

    def classes_changed(self) -> None:
        """FCOS counts them."""
        self.fcos.num_classes = self.fcos.cls_out_channels = len(self.class_names)

    def borrow_sam(self, sam: Refiner) -> None:
        """See :class:`Head`; masks of boxes then come from it."""
        if self.sam is None:
            self._borrowed = (sam,)  # in a tuple: no submodule, its parameters belong to another head

    def trains(self, part: nn.Module) -> bool:
        """Everything but the refiner, which makes masks without a gradient."""
        return self.sam is None or all(module is not part for module in self.sam.modules())

    def keep_as_is(self, part: nn.Module) -> None:
        """Keeps the refiner's decoder as published: trained for phrases it would no longer fit boxes."""
        if self.sam is not None and part is self.sam:
            self.sam.keep_box_decoder()

    @property
    def refiner(self) -> Refiner | None:
        """See :class:`Head`: what makes masks of boxes, the head's own, else a borrowed one."""
        return self.sam if self.sam is not None else next(iter(self._borrowed), None)

    def num_targets(self, batch: GroundingBatch) -> int:
        """Positive points, at least one where there is a sample: what every loss is divided by."""
        if len(batch) == 0:
            return 0
        return max(1, sum(self._positives(batch.part(places)) for places in same_grid(batch)))

    def _positives(self, batch: GroundingBatch) -> int:
        """Positive points of images of one grid."""
        frames = self.neck.frames(batch)
        objects = [self._objects(sample, frame) for sample, frame in zip(batch.samples, frames)]
        return len(self.fcos.assign(self.neck.map_sizes(frames[0]), objects).positive)

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """FCOS's losses.

        Args:
            states: With the neck's vision maps.
            batch: Samples with boxes.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness`` (each divided by the number of positive points), and
            the gate's figures.

        Raises:
            DataError: A sample has no boxes, or labels outside the classes.
        """
        parts = by_grid(states, batch)
        # Divided by one number, so that the parts' losses add up.
        count = self.num_targets(batch) if len(parts) > 1 else None
        return summed([self._losses(part, len(part.batch) / len(batch), count) for part in parts])

    def _losses(self, part: OneGrid, share: float, count: int | None) -> dict[str, Tensor]:
        """Losses of images of one grid, divided by ``count``, and their share of the gate's figures."""
        logits, distances, centreness = self.fcos(self.neck(part.states, part.batch))
        device = logits[0].device
        objects = [
            self._objects(sample, frame, device)
            for sample, frame in zip(part.batch.samples, self.neck.frames(part.batch))
        ]
        result = self.fcos.losses(logits, distances, centreness, objects, count)
        figures = self.neck.statistics().items()
        result.update({name: torch.tensor(share * value, device=device) for name, value in figures})
        return result

    @property
    def teachable(self) -> bool:
        """See :class:`Head`."""
        return True

    def soft_losses(
        self, states: LMMStates, batch: GroundingBatch, teacher: Head[Any], teacher_states: LMMStates
    ) -> dict[str, Tensor]:
        """See :class:`Head` and :meth:`FrameFCOS.soft_losses <flmm_detseg.heads.fcos.FrameFCOS.soft_losses>`."""
        assert isinstance(teacher, DetectionHead)  # a copy of this head
        count = self.num_targets(batch)
        own, taught = by_grid(states, batch), by_grid(teacher_states, batch)
        parts = []
        for mine, theirs in zip(own, taught, strict=True):
            with torch.no_grad():
                wanted = teacher.fcos(teacher.neck(theirs.states, theirs.batch))
            parts.append(self.fcos.soft_losses(self.fcos(self.neck(mine.states, mine.batch)), wanted, count))
        return summed(parts)

    @torch.no_grad()
    def pseudo_labelled(self, states: LMMStates, batch: GroundingBatch, threshold: float) -> GroundingBatch:
        """See :class:`Head`: boxes whose score is at least the threshold, weighted by it."""
        rows: dict[int, Sample] = {}
        for part in by_grid(states, batch):
            for place, objects in zip(part.places, self._find(part), strict=True):
                objects = objects[objects.scores >= threshold].cpu()
                dense = DenseTargets(
                    boxes_xyxy=objects.bboxes.float().numpy(),
                    labels=objects.labels.numpy(),
                    weights=objects.scores.float().numpy(),
                )
                rows[place] = replace(batch.samples[place], dense=dense)
        return GroundingBatch([rows[place] for place in range(len(batch))], batch.inputs)

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[InstanceData]:
        """Objects of every image, best first.

        Args:
            states: With the neck's vision maps.
            batch: The samples.

        Returns:
            Per sample ``bboxes`` (float32 ``[N, 4]``, xyxy, original image pixels, inside the image), ``scores``
            (float32 ``[N]``), ``labels`` (int64 ``[N]``), and with a refiner ``masks`` (bool ``[N, H, W]``).
        """
        rows: dict[int, InstanceData] = {}
        for grid in by_grid(states, batch):
            rows.update(zip(grid.places, self._find(grid), strict=True))
        found = [rows[place] for place in range(len(batch))]
        ids = [sample.record_id for sample in batch.samples]
        refiner = self.refiner
        if refiner is not None:
            found_maps = refiner.maps_from_boxes(
                [sample.image for sample in batch.samples],
                [objects.bboxes for objects in found],
                [sample.image_id for sample in batch.samples],
            )
            for name, objects, maps, sample in zip(ids, found, found_maps, batch.samples):
                require_finite("masks of detected objects", [name], [maps.maps[None]])
                # Logits of an image's hundred boxes would take gigabytes where the image is large.
                masks = torch.empty(len(maps), *sample.image_size, dtype=torch.bool, device=maps.maps.device)
                for part in pieces(maps, sample.image_size):
                    masks[part] = above(maps.enlarge(part), 0.0)
                objects.masks = masks
        return found

    def _find(self, part: OneGrid) -> list[InstanceData]:
        """Objects of images of one grid, without masks."""
        frames = self.neck.frames(part.batch)
        outputs = self.fcos(self.neck(part.states, part.batch))
        logits, distances, centreness = outputs
        ids = [sample.record_id for sample in part.batch.samples]
        require_finite("detection head's outputs", ids, (maps for levels in outputs for maps in levels))
        candidates = self.fcos.candidates(
            logits,
            distances,
            centreness,
            frame_sizes=[frame.size for frame in frames],
            score_threshold=self.score_threshold,
            per_level=self.candidates_per_level,
        )
        return [self._select(boxes, frame) for boxes, frame in zip(candidates, frames)]

    def _select(self, candidates: InstanceData, frame: Frame) -> InstanceData:
        """Candidates in the frame -> kept objects in the image."""
        candidates.bboxes = frame.boxes_out_of(candidates.bboxes)
        width, height = (candidates.bboxes[:, 2:] - candidates.bboxes[:, :2]).unbind(1)
        candidates = candidates[(width > 0) & (height > 0)]  # others lie in the padding
        if len(candidates) == 0:
            return candidates
        _, keep = batched_nms(
            candidates.bboxes,
            candidates.scores,
            candidates.labels,
            dict(type="nms", iou_threshold=self.nms_iou),
        )
        return candidates[keep[: self.max_per_image]]

    def _objects(self, sample: Sample, frame: Frame, device: torch.device | str = "cpu") -> Objects:
        dense = sample.dense
        if dense is None or dense.boxes_xyxy is None or dense.labels is None:
            raise DataError(
                f"{sample.record_id}: no boxes with labels; detection needs them (`Sample.dense`), and an empty list "
                "where there is no object"
            )
        boxes, labels = torch.from_numpy(dense.boxes_xyxy).float(), torch.from_numpy(dense.labels).long()
        boxes = boxes.reshape(-1, 4)
        known = len(self.class_names)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < known:
            raise DataError(
                f"{sample.record_id}: labels {int(labels.min())}..{int(labels.max())}, but the head has {known} classes"
            )
        crowd = torch.zeros(len(boxes), dtype=torch.bool)
        if dense.crowd is not None:
            crowd = torch.from_numpy(dense.crowd).bool()
        weights = torch.ones(len(boxes)) if dense.weights is None else torch.from_numpy(dense.weights).float()
        if not len(boxes) == len(labels) == len(crowd) == len(weights):
            raise DataError(
                f"{sample.record_id}: {len(boxes)} boxes, {len(labels)} labels, {len(crowd)} crowd flags and "
                f"{len(weights)} weights; one each is needed"
            )
        boxes = frame.boxes_into(boxes).to(device)
        keep, crowd = ~crowd.to(device), crowd.to(device)
        return Objects(boxes[keep], labels.to(device)[keep], weights.to(device)[keep], boxes[crowd])
