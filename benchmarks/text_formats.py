"""What each text format costs and loses on TinyWorld's objects: tokens an object, and IoU after writing and reading.

Tokens are those of the tiny LLaVA's tokenizer (words, with a character for everything else) and bytes, which is what a
byte-level tokenizer without merges needs. An answer holds all objects of a scene; tags and marks between objects are
counted with them. IoU is that of each object's box or mask with what is read back.

A mask of which a format leaves nothing (a small one between the cells of a coarse grid) is not written; its IoU is 0.

Example: ``python benchmarks/text_formats.py --scenes 300``
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np

from flmm_detseg.datasets.tinyworld import Scene, make_scene
from flmm_detseg.language import (
    BoxedCaption,
    BoxItem,
    JointAnswer,
    JointTemplate,
    QwenJSON,
    TextFormat,
    dequantise_boxes,
    draw_mask,
    quantise_boxes,
)
from flmm_detseg.language.serialise import SerialiseOptions
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.tokenizer_file import read_offsets

TINY = "data/models/tiny_llava"
BOXES: dict[str, TextFormat] = {
    "template": JointTemplate(),
    "template, number words": JointTemplate(numbers=TINY),
    "template in words, number words": JointTemplate(numbers=TINY, words=True),
    "boxed caption": BoxedCaption(),
    "Qwen's JSON, 0..1000": QwenJSON(),
    "Qwen's JSON, pixels": QwenJSON(frame="pixels"),
}
MASKS: dict[str, TextFormat] = {
    "template": JointTemplate(),
    "template, number words": JointTemplate(numbers=TINY),
    "template, runs of the image's pixels": JointTemplate(masks="runs", side=0),
    **{f"template, runs, {side} x {side}": JointTemplate(masks="runs", side=side) for side in (64, 32, 16)},
    "template, places": JointTemplate(masks="places"),
    "template in words, places": JointTemplate(masks="places", words=True),
}


def box_iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two xyxy boxes."""
    shared = (np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])).clip(min=0).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (first, second)]
    return float(shared / (sum(areas) - shared))


def written_boxes(scene: Scene, form: TextFormat) -> tuple[str, list[float]]:
    """The text of a scene's boxes, and the IoU of each with what is read."""
    size = scene.image.shape[:2]
    boxes = np.asarray([item.box_xyxy for item in scene.objects], dtype=np.float64)
    items = tuple(
        BoxItem(item.kind, tuple(box))
        for item, box in zip(scene.objects, quantise_boxes(boxes, size).tolist(), strict=True)
    )
    written = form.write(JointAnswer(detections=items), size)
    read = form.parse(written.text, size).answer.detections or ()
    back = dequantise_boxes(np.asarray([item.box for item in read]), size)
    return written.text, [
        box_iou(boxes[index], box) for index, box in zip(written.detection_order, back, strict=True)
    ]


def written_masks(scene: Scene, form: TextFormat) -> tuple[str, list[float]]:
    """The text of a scene's masks (outlines have at most 24 points), and the IoU of each with what is read."""
    size = scene.image.shape[:2]
    made = [form.mask_item(item.kind, item.mask) for item in scene.objects]
    items = tuple(item for item in made if item is not None)
    written = form.write(JointAnswer(segmentations=items), size, SerialiseOptions(max_masks=100))
    read = iter(form.parse(written.text, size).answer.segmentations or ())
    ious = []
    for item, own in zip(scene.objects, made, strict=True):
        drawn = np.zeros(size, dtype=bool) if own is None else draw_mask(next(read), size)
        ious.append(float((drawn & item.mask).sum() / (drawn | item.mask).sum()))
    return written.text, ious


def main() -> dict[str, Any]:
    """Measures, prints a table; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scenes", type=int, default=300, help="of the validation split (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = [make_scene(args.seed, index, "val") for index in range(args.scenes)]
    tokens = read_offsets(TINY)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':45}{'tiny tokens':>12}{'bytes':>9}{'mean IoU':>10}{'least':>8}")
    ways = {f"boxes, {name}": partial(written_boxes, form=form) for name, form in BOXES.items()}
    ways |= {f"masks, {name}": partial(written_masks, form=form) for name, form in MASKS.items()}
    for name, write in ways.items():
        ious: list[float] = []
        counts = np.zeros(2)
        for scene in scenes:
            text, found = write(scene)
            ious += found
            counts += len(tokens(text)), len(text.encode())
        own = {
            "tiny_tokens": round(counts[0] / len(ious), 1),
            "bytes": round(counts[1] / len(ious), 1),
            "mean_iou": round(float(np.mean(ious)), 4),
            "least_iou": round(min(ious), 4),
        }
        figures[name] = own
        print(f"{name:45}" + "{:12.1f}{:9.1f}{:10.4f}{:8.4f}".format(*own.values()))
    return {"task": "text_formats", "scenes": args.scenes, "figures": figures}


if __name__ == "__main__":
    run_tool(main)
