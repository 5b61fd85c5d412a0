"""What a detector found, as text that an LMM reads before a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_detseg.datasets.tinyworld.questions import article, format_box
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.regions import Region
from flmm_detseg.language import BoxItem, JointAnswer, SerialiseOptions, quantise_boxes, serialise
from flmm_detseg.utils.choices import BOX_WORDS

# Of more objects the surest ones are written: an LMM's context is short.
MAX_BOXES = 20


def boxes_as_text(regions: Sequence[Region], image_size: tuple[int, int], words: str = "template") -> str:
    """Classes and boxes as text.

    Args:
        regions: Detected objects, of which the :data:`MAX_BOXES` surest are written.
        image_size: ``(H, W)``.
        words: One of :data:`~flmm_detseg.utils.choices.BOX_WORDS`. ``"template"``: the section of joint answers
            (:func:`~flmm_detseg.language.serialise.serialise`), the largest first. ``"tinyworld"``: as the tiny LLaVA
            writes captions with boxes, in its own words, from the top to the bottom.

    Returns:
        ``"Detections: car [12, 40, 380, 912]; dog [402, 38, 777, 930]\\n"``, ``"Detections: none\\n"``;
        ``"a star 100 200 300 410 . a ring 500 200 700 430 . "``, or nothing.

    Raises:
        ConfigError: Unknown ``words``.
    """
    if words not in BOX_WORDS:
        raise ConfigError(f"boxes in words {words!r} are not known; allowed: {', '.join(BOX_WORDS)}")
    given = sorted(regions, key=lambda region: -region.score)[:MAX_BOXES]
    if words == "tinyworld":
        given.sort(key=lambda region: (region.box_xyxy[1], region.box_xyxy[0]))
        boxed = [(region.label, format_box(region.box_xyxy, image_size)) for region in given]
        return "".join(f"{article(label)} {label} {box} . " for label, box in boxed)
    boxes = quantise_boxes(np.array([region.box_xyxy for region in given]).reshape(-1, 4), image_size)
    items = tuple(
        BoxItem(region.label, (int(x0), int(y0), int(x1), int(y1)))
        for region, (x0, y0, x1, y1) in zip(given, boxes, strict=True)
    )
    return serialise(JointAnswer(detections=items), SerialiseOptions(max_boxes=MAX_BOXES)).text + "\n"
