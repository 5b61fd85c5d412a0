"""What SAM outlines where somebody points: clicks, a box, a scribble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import named_heads
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.inference.scribble import points_along
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.ops.masks import above, mask_scores
from flmm_detseg.refiners import Refiner
from flmm_detseg.structures import Region
from flmm_detseg.utils.finite import require_finite
from flmm_detseg.utils.values import shown


@dataclass(frozen=True)
class Outline:
    """What was outlined.

    Attributes:
        mask: bool ``[H, W]``, pixels of the image; may be empty.
        score: In [0, 1], see ``score_of``.
        box_xyxy: Half-open pixel box of the mask; zeros where it is empty.
        score_of: ``"quality"``: SAM's own estimate of the mask's IoU with what is meant. ``"mask"``: mean foreground
            probability inside of the mask, of a SAM whose estimates were never trained (the repository's tiny one).
    """

    mask: np.ndarray = field(repr=False)
    score: float
    box_xyxy: tuple[float, float, float, float]
    score_of: Literal["quality", "mask"] = "quality"


class Outliner:
    """Outlines what is pointed at in one image, by the SAM of a grounder's heads; the LMM takes no part.

    The image is encoded at the first call, and the encoding kept. Prompts go to SAM as it was published where the
    model was built from a config and a checkpoint: training for phrases makes it forget points and boxes.

    Args:
        grounder: Its model has a head with a refiner.
        image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``.

    Raises:
        ConfigError: No head of the model has a refiner.
        DataError: The image cannot be read.

    Example:
        >>> outliner = Outliner(Grounder.from_config(config, checkpoint), "scene.png")
        >>> outliner.outline(points=[(40, 60)]).mask
    """

    def __init__(self, grounder: Grounder, image: ImageLike) -> None:
        self._refiner = _refiner_of(grounder)
        self.image = read_image(image, "image")

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)``."""
        return self.image.shape[0], self.image.shape[1]

    def outline(
        self,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[bool] | None = None,
        box: tuple[float, float, float, float] | None = None,
        scribble: np.ndarray | None = None,
    ) -> Outline:
        """The one thing that all prompts together mean.

        A single point says little: SAM then makes three candidates and the one is taken that it thinks best, where its
        candidates were trained. With more prompts its single mask is taken.

        Args:
            points: ``(x, y)`` in pixels of the image.
            labels: One for each point: True lies in what is meant, False does not; None: all lie in it.
            box: ``(x0, y0, x1, y1)`` in pixels of the image; what is outside of the image is cut off.
            scribble: bool ``[H, W]``, true where it was drawn: points are spread along it, all of them in what is
                meant.

        Returns:
            Mask, score and box.

        Raises:
            DataError: Nothing is given, or only what is not meant; a point or the whole box lies outside of the image;
                a scribble of another size, or an empty one.
            RunError: The mask holds NaN or infinities.
        """
        places, inside = self._points(points, labels)
        if scribble is not None:
            drawn = points_along(self._scribble(scribble))
            places, inside = [*places, *drawn], [*inside, *[True] * len(drawn)]
        corners = None if box is None else self._box(box)
        if corners is None and not any(inside):
            what = "the points say only where it is not" if places else "give points, a box or a scribble"
            raise DataError(f"nothing to outline: {what}")
        ambiguous = corners is None and len(places) == 1
        maps, quality = self._refiner.map_of_prompt(
            self._features,
            self.image_size,
            torch.tensor(places) if places else None,
            torch.tensor(inside).long() if places else None,
            corners,
            candidates=ambiguous and self._refiner.trained_candidates,
        )
        require_finite("outline", ["image"], [maps.maps[None]])
        logits = maps.enlarge()
        masks = above(logits, 0.0)
        x0, y0, x1, y1 = map(float, masks_to_boxes(masks)[0])
        mask = masks[0].cpu().numpy()
        if self._refiner.trained_candidates:
            score = min(max(quality, 0.0), 1.0) if mask.any() else 0.0
            return Outline(mask, score, (x0, y0, x1, y1))
        return Outline(mask, float(mask_scores(logits, masks)[0]), (x0, y0, x1, y1), "mask")

    @cached_property
    def _features(self) -> tuple[Tensor, ...]:
        features, _ = self._refiner.image_features([self.image])
        return features

    def _points(
        self, points: Sequence[tuple[float, float]], labels: Sequence[bool] | None
    ) -> tuple[list[tuple[float, float]], list[bool]]:
        """Points and what they say, checked."""
        if isinstance(points, str) or not isinstance(points, Sequence | np.ndarray):
            raise DataError(f"points are {shown(points)}; a list of (x, y) in pixels is needed")
        found = []
        height, width = self.image_size
        for point in points:
            place = Region.of(tuple(point) if isinstance(point, np.ndarray) else point).point_xy
            if place is None:
                raise DataError(f"a point is {shown(point)}; (x, y) in pixels is needed")
            if not (0 <= place[0] <= width and 0 <= place[1] <= height):
                raise DataError(
                    f"the point {place} lies outside of the image, which is {width} wide and {height} high"
                )
            found.append(place)
        if labels is None:
            return found, [True] * len(found)
        if len(labels) != len(found):
            raise DataError(f"{len(found)} points and {len(labels)} labels: give one for each point")
        if not all(isinstance(label, bool | np.bool_) for label in labels):
            raise DataError(
                f"labels are {shown(list(labels))}; True (in what is meant) or False for each point"
            )
        return found, [bool(label) for label in labels]

    def _box(self, box: Sequence[float]) -> Tensor:
        found = Region.of(box).box_xyxy
        if found is None:
            raise DataError(f"a box is {shown(box)}; (x0, y0, x1, y1) in pixels is needed")
        height, width = self.image_size
        x0, y0, x1, y1 = max(found[0], 0.0), max(found[1], 0.0), min(found[2], width), min(found[3], height)
        if x0 >= x1 or y0 >= y1:
            raise DataError(
                f"the box {found} lies outside of the image, which is {width} wide and {height} high"
            )
        return torch.tensor([x0, y0, x1, y1])

    def _scribble(self, scribble: np.ndarray) -> np.ndarray:
        found = Region.of(scribble).mask
        if found is None or found.shape != self.image_size:
            size = getattr(scribble, "shape", None)
            raise DataError(
                f"a scribble is {shown(scribble) if size is None else size}; bool (H, W) of the image's size "
                f"{self.image_size} is needed"
            )
        if not found.any():
            raise DataError("the scribble is empty: draw over what is to be outlined")
        return found


def _refiner_of(grounder: Grounder) -> Refiner:
    heads = named_heads(grounder.model.heads)
    found = next((head.refiner for head in heads.values() if head.refiner is not None), None)
    if found is None:
        raise ConfigError(
            f"the model has nothing that outlines what is pointed at (heads: {', '.join(heads)}): give a head a "
            "refiner in the config, e.g. sam=dict(type='SAMRefiner', checkpoint='data/models/tiny_sam')"
        )
    return found
