"""Small data sets in the published formats, written by hand for the tests of readers and evaluation."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 60)  # (H, W)


def write_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def box_polygon(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def write_refcoco(
    root: Path, num_images: int = 4, num_objects: int = 2, num_sentences: int = 3, num_test: int = 1
) -> dict[str, str]:
    """RefCOCO files (all images in ``val``, the last ``num_test`` in ``testA``); returns the reader's arguments."""
    images, annotations, refs = [], [], []
    for image in range(num_images):
        name = f"COCO_train2014_{image:012d}.png"
        write_image(root / "images" / name, image)
        images.append({"id": 100 + image, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for index in range(num_objects):
            ann_id = 1000 + 10 * image + index
            x0, y0 = 4 + 20 * index, 5 + image
            # the first object has two parts, to be united
            polygons = [box_polygon(x0, y0, x0 + 9, y0 + 12)]
            if index == 0:
                polygons.append(box_polygon(x0 + 12, y0 + 2, x0 + 15, y0 + 6))
            annotations.append(
                {"id": ann_id, "image_id": 100 + image, "category_id": 1, "segmentation": polygons}
            )
            sentences = [
                {"raw": f"Object {index} of image {image} way {way}", "sent_id": ann_id * 10 + way}
                for way in range(num_sentences)
            ]
            refs.append(
                {
                    "ref_id": ann_id + 5000,
                    "ann_id": ann_id,
                    "image_id": 100 + image,
                    "split": "testA" if image >= num_images - num_test else "val",
                    "sentences": sentences,
                    "file_name": name,
                    "category_id": 1,
                }
            )
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (root / "instances.json").write_text(json.dumps(instances))
    return {
        "refs_file": str(root / "refs(unc).p"),
        "instances_file": str(root / "instances.json"),
        "image_dir": str(root / "images"),
    }


def edit_refs(arguments: dict[str, str], change: Any) -> None:
    """Applies ``change(refs, instances)`` to written RefCOCO files."""
    refs_file, instances_file = Path(arguments["refs_file"]), Path(arguments["instances_file"])
    refs, instances = pickle.loads(refs_file.read_bytes()), json.loads(instances_file.read_text())
    change(refs, instances)
    refs_file.write_bytes(pickle.dumps(refs, protocol=2))
    instances_file.write_text(json.dumps(instances))


def write_png(root: Path, num_images: int = 3) -> dict[str, str]:
    """PNG files: things, stuff, a narrative without grounded phrase; returns the reader's arguments."""
    images, annotations, narratives = [], [], []
    for image in range(num_images):
        name = f"{image:012d}"
        write_image(root / "images" / f"{name}.png", image)
        ids = np.zeros(SIZE, dtype=np.int64)
        base = 70000 * (image + 1)
        ids[: SIZE[0] // 2] = base + 3
        ids[10:20, 5:15] = base + 1
        ids[12:30, 30 + image : 45] = base + 2
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        (root / "panoptic").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(root / "panoptic" / f"{name}.png")
        images.append({"id": image + 7, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        infos = [
            {"id": base + 1, "category_id": 1, "iscrowd": 0},
            {"id": base + 2, "category_id": 1, "iscrowd": 0},
            {"id": base + 3, "category_id": 2, "iscrowd": 0},
        ]
        annotations.append({"image_id": image + 7, "file_name": f"{name}.png", "segments_info": infos})
        segments = [
            segment("In front of"),
            segment("the sky", [base + 3]),
            segment("there is"),
            segment("a star", [base + 1]),
            segment(";"),
            segment("two stars", [base + 1, base + 2], plural=True),
            segment("."),
        ]
        narratives.append(narrative(str(image + 7), segments))
    narratives.append(narrative("7", [segment("Nothing here"), segment(".")]))
    (root / "png_coco_val2017.json").write_text(json.dumps(narratives))
    categories = [{"id": 1, "name": "star", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    panoptic = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic_val2017.json").write_text(json.dumps(panoptic))
    return {
        "narratives_file": str(root / "png_coco_val2017.json"),
        "panoptic_json": str(root / "panoptic_val2017.json"),
        "panoptic_dir": str(root / "panoptic"),
        "image_dir": str(root / "images"),
    }


def segment(
    utterance: str, segment_ids: tuple[int, ...] | list[int] = (), plural: bool = False
) -> dict[str, Any]:
    return {
        "utterance": utterance,
        "segment_ids": [str(segment_id) for segment_id in segment_ids],
        "plural": plural,
        "noun": bool(segment_ids),
    }


def narrative(image_id: str, segments: list[dict[str, Any]]) -> dict[str, Any]:
    caption = " ".join(item["utterance"] for item in segments)
    return {"annotator_id": 1, "image_id": image_id, "caption": caption, "segments": segments}


def write_jsonl(root: Path, lines: list[Any], name: str = "own.jsonl") -> Path:
    write_image(root / "picture.png", 3)
    path = root / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def own_line(**changes: Any) -> dict[str, Any]:
    line = {
        "image": "picture.png",
        "caption": "a cat near a dog",
        "phrases": [{"span": [0, 5], "mask": {"polygon": [box_polygon(2, 3, 20, 30)]}}],
    }
    line.update(changes)
    return line
