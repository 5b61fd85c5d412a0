"""What each text format costs and loses on TinyWorld's objects: tokens an object, and IoU after writing and reading.

Tokens are those of the tiny LLaVA's tokenizer (words, with a character for everything else) and bytes, which is what a
byte-level tokenizer without merges needs. An answer holds all objects of a scene; tags and marks between objects are
counted with them. IoU is that of each object's box or mask with what is read back.

Two more ways to write masks are measured that no text format has: COCO's compressed run lengths in Base64, of the mask
on a grid of so many rows and columns, and the words of one of nine places ("at the top left"), read as that ninth of
the image.

Example: ``python benchmarks/text_formats.py --scenes 300``
"""

from __future__ import annotations

import argparse
import base64
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from flmm_detseg.datasets.tinyworld import Scene, make_scene
from flmm_detseg.language import (
    BoxedCaption,
    BoxItem,
    JointAnswer,
    JointTemplate,
    MaskItem,
    QwenJSON,
    TextFormat,
    dequantise_boxes,
    mask_to_polygons,
    polygons_to_mask,
    quantise_boxes,
)
from flmm_detseg.language.serialise import SerialiseOptions
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.rle import encode_rle
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
}
# Grids of the run lengths: every pixel, and coarser ones.
SIDES = (112, 32, 16)


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
    """The text of a scene's outlines of at most 24 points, and the IoU of each mask with what is read."""
    size = scene.image.shape[:2]
    items = tuple(MaskItem(item.kind, mask_to_polygons(item.mask).polygons) for item in scene.objects)
    written = form.write(JointAnswer(segmentations=items), size, SerialiseOptions(max_masks=100))
    read = form.parse(written.text, size).answer.segmentations or ()
    ious = []
    for item, found in zip(scene.objects, read, strict=True):
        drawn = polygons_to_mask(found.polygons or (), size)
        ious.append(float((drawn & item.mask).sum() / (drawn | item.mask).sum()))
    return written.text, ious


def written_runs(scene: Scene, side: int) -> tuple[str, list[float]]:
    """Run lengths of each mask at ``side`` x ``side``, and the IoU of what is read, drawn at the image's size."""
    height, width = scene.image.shape[:2]
    places = [np.floor((np.arange(side) + 0.5) / side * length).astype(int) for length in (height, width)]
    back = [np.minimum(np.arange(length) * side // length, side - 1) for length in (height, width)]
    parts, ious = [], []
    for item in scene.objects:
        small = item.mask[np.ix_(*places)]
        code = base64.b64encode(encode_rle(small)["counts"].encode()).decode()
        parts.append(f"{item.kind} {code}")
        read = coco_mask.decode({"size": [side, side], "counts": base64.b64decode(code)}).astype(bool)
        drawn = read[np.ix_(*back)]
        ious.append(float((drawn & item.mask).sum() / (drawn | item.mask).sum()))
    return f"segmentations: {'; '.join(parts)}", ious


def written_places(scene: Scene) -> tuple[str, list[float]]:
    """The ninth of the image in which the centre of each object is, and its IoU with the mask."""
    height, width = scene.image.shape[:2]
    rows, cols = ("top", "", "bottom"), ("left", "", "right")
    parts, ious = [], []
    for item in scene.objects:
        x, y = item.centre_xy
        row, col = min(2, int(y / height * 3)), min(2, int(x / width * 3))
        place = " ".join(word for word in (rows[row], cols[col]) if word)
        parts.append(f"{item.kind} at the {place}" if place else f"{item.kind} in the centre")
        drawn = np.zeros((height, width), dtype=bool)
        bounds = [
            (round(k * side / 3), round((k + 1) * side / 3)) for k, side in ((row, height), (col, width))
        ]
        drawn[slice(*bounds[0]), slice(*bounds[1])] = True
        ious.append(float((drawn & item.mask).sum() / (drawn | item.mask).sum()))
    return f"segmentations: {'; '.join(parts)}", ious


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
    ways |= {f"masks, runs in Base64, {side} x {side}": partial(written_runs, side=side) for side in SIDES}
    ways["masks, one of nine places"] = written_places
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
