"""Detection and segmentation heads with their necks as graphs of one image on any patch grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flmm_detseg.heads.fcos import FrameFCOS
from flmm_detseg.heads.neck import VisionNeck
from flmm_detseg.heads.open_classifier import OpenClassifier
from flmm_detseg.structures import Graph, Port

Examples = tuple[Tensor, ...]


class NeckGraph(nn.Module):
    """The pyramid of one image for one task.

    Args:
        neck: The neck.
        task: What its gate is given.
    """

    def __init__(self, neck: VisionNeck, task: str) -> None:
        super().__init__()
        self.neck = neck
        self.task = task

    def forward(self, vision: Tensor, views: Tensor | None = None) -> list[Tensor]:
        """Levels ``[1, C, h, w]`` of maps ``[1, L, d_v, rows, cols]``, and of pixels where the neck reads those."""
        side = self.neck.side
        fine = None if side is None or views is None else side.of_views(views)
        return self.neck.pyramid(vision.unbind(1), (self.task,), fine)


class DetectionGraph(nn.Module):
    """All boxes before any is left out.

    Args:
        neck: The pyramid.
        fcos: On the pyramid.
    """

    def __init__(self, neck: VisionNeck, fcos: FrameFCOS) -> None:
        super().__init__()
        self.pyramid = NeckGraph(neck, "detection")
        self.fcos = fcos
        self.reads_views = neck.side is not None
        self.reads_classes = fcos.text_channels is not None

    def forward(self, vision: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, probabilities of the classes and centreness of all P points.

        Args:
            vision: ``[1, L, d_v, rows, cols]``.
            *more: Pixels of the view, where the neck reads them; embeddings of the classes, where the head is open.

        Returns:
            ``[P, 4]`` xyxy in pixels of the frame, ``[P, classes]``, ``[P]``.
        """
        rest = list(more)
        levels = self.pyramid(vision, rest.pop(0) if self.reads_views else None)
        if self.reads_classes:
            self.fcos.conv_cls.embeddings = rest.pop(0)
        logits, distances, centreness = self.fcos(levels)
        boxes = []
        for maps, stride in zip(distances, self.fcos.strides, strict=True):
            rows, cols = maps.shape[-2:]
            y = ((torch.arange(rows) + 0.5) * stride)[:, None]
            x = ((torch.arange(cols) + 0.5) * stride)[None]
            left, top, right, bottom = (maps[0] * stride).unbind(0)
            boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], dim=-1).flatten(0, 1))
        scores = [maps[0].flatten(1).T.sigmoid() for maps in logits]
        centred = [maps[0, 0].flatten().sigmoid() for maps in centreness]
        return torch.cat(boxes), torch.cat(scores), torch.cat(centred)


class SegmentationGraph(nn.Module):
    """Class logits over the frame.

    Args:
        neck: The pyramid.
        decoder: On the pyramid.
    """

    def __init__(self, neck: VisionNeck, decoder: nn.Module) -> None:
        super().__init__()
        self.pyramid = NeckGraph(neck, "segmentation")
        self.decoder = decoder
        self.reads_classes = isinstance(decoder.classify, OpenClassifier)

    def forward(self, vision: Tensor, *more: Tensor) -> Tensor:
        """Logits ``[classes, h, w]``.

        Args:
            vision: ``[1, L, d_v, rows, cols]``.
            *more: Pixels of the view, where the neck reads them; embeddings of the classes, where the head is open.

        Returns:
            At the finest level's size.
        """
        if self.reads_classes:
            classifier = self.decoder.classify
            assert isinstance(classifier, OpenClassifier)
            more, classifier.embeddings = more[:-1], more[-1]
        logits: Tensor = self.decoder(self.pyramid(vision, *more))[0]
        return logits


def detection_graph(
    neck: VisionNeck, fcos: FrameFCOS, class_names: Sequence[str], limits: Mapping[str, Any]
) -> Graph:
    """The graph of a detection head.

    Args:
        neck: The pyramid, in float32.
        fcos: On the pyramid; an open one with its classes.
        class_names: In the order of the labels.
        limits: ``score_threshold``, ``candidates_per_level``, ``nms_iou`` and ``max_per_image`` of the head.

    Returns:
        ``boxes``: vision maps to boxes and scores of all points.
    """
    ports, examples, others = _inputs(neck)
    if fcos.text_channels is not None:
        ports, examples, others = _with_classes(ports, examples, others, fcos.conv_cls)
    classes: int | str = "classes" if fcos.text_channels is not None else len(class_names)
    return Graph(
        "boxes",
        "Feature pyramid and FCOS: vision maps of one image to boxes and scores of all points, none left out",
        DetectionGraph(neck, fcos),
        ports,
        examples,
        (
            Port("boxes_xyxy", ("points", 4), "pixels of the frame, levels one after the other, rows first"),
            Port("class_probabilities", ("points", classes), "a score is this times the centreness"),
            Port("centreness", ("points",), "in [0, 1]"),
        ),
        others,
        {
            **_settings(neck),
            "class_names": list(class_names),
            "after": "of each level keep at most `candidates_per_level` (point, class) with the largest probability "
            "above `score_threshold`; cut boxes off at the frame and move them from the frame to the image; suppress "
            "within each class above `nms_iou`; keep `max_per_image`",
            **limits,
        },
    )


def segmentation_graph(neck: VisionNeck, decoder: nn.Module, class_names: Sequence[str]) -> Graph:
    """The graph of a semantic head.

    Args:
        neck: The pyramid, in float32.
        decoder: On the pyramid.
        class_names: In the order of the labels.

    Returns:
        ``classes``: vision maps to class logits.
    """
    ports, examples, others = _inputs(neck)
    classes: int | str = len(class_names)
    if isinstance(decoder.classify, OpenClassifier):
        classes = "classes"
        ports, examples, others = _with_classes(ports, examples, others, decoder.classify)
    return Graph(
        "classes",
        "Feature pyramid and decoder: vision maps of one image to a map of logits for each class",
        SegmentationGraph(neck, decoder),
        ports,
        examples,
        (
            Port(
                "logits",
                (classes, "h", "w"),
                "over the frame; enlarge to the frame, cut the image out, enlarge to the image, take the largest",
            ),
        ),
        others,
        {**_settings(neck), "class_names": list(class_names)},
    )


def _with_classes(
    ports: tuple[Port, ...], examples: Examples, others: tuple[Examples, ...], classifier: OpenClassifier
) -> tuple[tuple[Port, ...], Examples, tuple[Examples, ...]]:
    """With the embeddings of the classes as the last input; the other examples have one class."""
    embeddings = classifier.embeddings
    about = "mean input embedding of each class name's tokens, in the order of `class_names`"
    port = Port("class_embeddings", ("classes", embeddings.shape[1]), about)
    return (
        (*ports, port),
        (*examples, embeddings),
        tuple((*sizes, embeddings[:1]) for sizes in others),
    )


def _inputs(neck: VisionNeck) -> tuple[tuple[Port, ...], Examples, tuple[Examples, ...]]:
    layers, channels, patch = len(neck.vision_layers), neck.vision_channels, neck.patch_size
    about = f"hidden states of the vision tower after layers {list(neck.vision_layers)} as maps, without a class token"
    ports: tuple[Port, ...] = (Port("vision", (1, layers, channels, "rows", "cols"), about),)
    sizes = ((8, 8), (4, 4), (6, 10)) if neck.side is None else ((8, 8), (4, 4))
    examples: list[Examples] = [(torch.randn(1, layers, channels, *size),) for size in sizes]
    if neck.side is not None:
        about = "the view of the whole image as the LMM's processor normalises it"
        ports += (Port("views", (1, 3, "height", "width"), about),)
        examples = [
            (*made, torch.randn(1, 3, *(side * patch for side in size)))
            for made, size in zip(examples, sizes, strict=True)
        ]
    return ports, examples[0], tuple(examples[1:])


def _settings(neck: VisionNeck) -> dict[str, object]:
    about = "the tower's view of the whole image: patches times `patch_size`; the processor "
    about += "says where the image lies in it"
    return {"patch_size": neck.patch_size, "strides": list(neck.strides), "frame": about}
