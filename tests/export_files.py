"""Small COCO files in the shapes that annotation tools write, with a hand count of what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_files import write_image

SIZE = (30, 40)  # (H, W) of both pictures


@dataclass(frozen=True)
class Thing:
    """An object as the annotator drew it; ``area`` as the tool writes it."""

    picture: int
    name: str
    box: tuple[float, float, float, float]  # x, y, w, h
    area: float
    crowd: bool = False


# Two mugs and a kettle; the second mug leaves its picture by 2 pixels.
DRAWN = (
    Thing(0, "mug", (5, 5, 10, 10), 100),
    Thing(0, "kettle", (20, 10, 12, 15), 180),
    Thing(1, "mug", (30, 8, 12, 9), 108),
)


@dataclass(frozen=True)
class Export:
    """A written file.

    Attributes:
        things: What is in it, by hand.
        with_masks: Whether every object has a mask that the reader takes.
        unused: Classes without an object.
        ann_file, image_dir: Arguments of the reader.
    """

    things: tuple[Thing, ...]
    with_masks: bool
    unused: tuple[str, ...]
    ann_file: str
    image_dir: str


def polygon(thing: Thing) -> list[float]:
    x, y, w, h = thing.box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def runs(thing: Thing) -> dict[str, Any]:
    """Uncompressed run lengths of the box (column by column), as Datumaro writes brush masks."""
    x, y, w, h = map(int, thing.box)
    counts, height = [x * SIZE[0] + y], SIZE[0]
    for column in range(w):
        counts += [h, height - h if column < w - 1 else SIZE[0] * SIZE[1] - ((x + w - 1) * height + y + h)]
    return {"size": list(SIZE), "counts": counts}


def _write(
    folder: Path, content: dict[str, Any], files: tuple[str, str], image_dir: str, **facts: Any
) -> Export:
    for number, file in enumerate(files):
        write_image(folder / file, number, SIZE)
    (folder / "export.json").write_text(json.dumps(content))
    facts = {"things": DRAWN, "with_masks": False, "unused": (), **facts}
    return Export(ann_file=str(folder / "export.json"), image_dir=str(folder / image_dir), **facts)


def _images(names: tuple[str, str], first: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": first + k, "width": SIZE[1], "height": SIZE[0], "file_name": name, **more}
        for k, name in enumerate(names)
    ]


def cvat(folder: Path) -> Export:
    """CVAT, "COCO 1.0" (Datumaro): ids from 1, `attributes`; a box has no mask, a brush mask is a crowd."""
    brushed = Thing(1, "kettle", (2, 2, 6, 6), 36.0, crowd=True)
    annotations = [
        {
            "id": number, "image_id": thing.picture + 1, "category_id": 1 + (thing.name == "kettle"),
            "segmentation": runs(thing) if thing.crowd else [polygon(thing)] if thing.name == "kettle" else [],
            "area": float(thing.area), "bbox": list(thing.box), "iscrowd": int(thing.crowd),
            "attributes": {"occluded": False, "rotation": 0.0},
        }
        for number, thing in enumerate((*DRAWN, brushed), start=1)
    ]  # fmt: skip
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in ((1, "mug"), (2, "kettle"))]
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": categories,
        "images": _images(("a.png", "b.png"), 1, license=0, flickr_url="", coco_url="", date_captured=0),
        "annotations": annotations,
    }  # fmt: skip
    return _write(folder, content, ("images/a.png", "images/b.png"), "images", things=(*DRAWN, brushed))


def label_studio(folder: Path) -> Export:
    r"""Label Studio: all ids from 0, `ignore`, `segmentation` empty for boxes, names images\UUID-x.png (Windows)."""
    names = ("images\\1f0c22aa-a.png", "images\\77d1b3c0-b.png")
    annotations = [
        {
            "id": number, "image_id": thing.picture, "category_id": int(thing.name == "mug"), "segmentation": [],
            "bbox": list(thing.box), "ignore": 0, "iscrowd": 0, "area": thing.area,
        }
        for number, thing in enumerate(DRAWN)
    ]  # fmt: skip
    content = {
        "images": _images(names, 0),
        "categories": [{"id": 0, "name": "kettle"}, {"id": 1, "name": "mug"}],
        "annotations": annotations,
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }
    return _write(folder, content, tuple(name.replace("\\", "/") for name in names), "")


def roboflow(folder: Path) -> Export:
    """Roboflow: ids from 0, category 0 is the group's name and never used, names X_png.rf.HASH.jpg."""
    names = ("a_png.rf.0c1d2e3f.jpg", "b_png.rf.9a8b7c6d.jpg")
    annotations = [
        {
            "id": number, "image_id": thing.picture, "category_id": 1 + (thing.name == "mug"), "bbox": list(thing.box),
            "area": thing.area, "segmentation": [], "iscrowd": 0,
        }
        for number, thing in enumerate(DRAWN)
    ]  # fmt: skip
    content = {
        "info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "kitchen", "supercategory": "none"},
            {"id": 1, "name": "kettle", "supercategory": "kitchen"},
            {"id": 2, "name": "mug", "supercategory": "kitchen"},
        ],
        "images": _images(names, 0, license=1, date_captured="2026-01-01T00:00:00+00:00"),
        "annotations": annotations,
    }
    return _write(folder, content, names, "", unused=("kitchen",))


def labelme2coco(folder: Path) -> Export:
    """labelme2coco (through SAHI): categories from 0, a rectangle drawn from its lower right corner is negative."""
    backwards = {
        "id": 4, "image_id": 2, "category_id": 0, "bbox": [20, 20, -6, -5], "segmentation": [], "iscrowd": 0,
        "area": 30, "category_name": "mug",
    }  # fmt: skip
    annotations = [
        {
            "iscrowd": 0, "image_id": thing.picture + 1, "bbox": list(thing.box), "segmentation": [polygon(thing)],
            "category_id": int(thing.name == "kettle"), "id": number, "area": thing.area,
        }
        for number, thing in enumerate(DRAWN, start=1)
    ]  # fmt: skip
    content = {
        "images": _images(("a.png", "b.png"), 1),
        "annotations": [*annotations, backwards],
        "categories": [{"id": k, "name": n, "supercategory": n} for k, n in enumerate(("mug", "kettle"))],
    }
    return _write(folder, content, ("a.png", "b.png"), "", with_masks=True)


def fiftyone(folder: Path) -> Export:
    """FiftyOne, COCODetectionDataset: images in `data/`, `supercategory` null, no `segmentation` without masks."""
    annotations = [
        {
            "id": number, "image_id": thing.picture + 1, "category_id": int(thing.name == "mug"),
            "bbox": [float(value) for value in thing.box], "area": float(thing.area), "iscrowd": 0,
        }
        for number, thing in enumerate(DRAWN, start=1)
    ]  # fmt: skip
    categories = [{"id": k, "name": name, "supercategory": None} for k, name in enumerate(("kettle", "mug"))]
    content = {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne", "contributor": "", "url": ""},
        "licenses": [],
        "categories": categories,
        "images": _images(("a.png", "b.png"), 1, license=None, coco_url=None),
        "annotations": annotations,
    }  # fmt: skip
    return _write(folder, content, ("data/a.png", "data/b.png"), "data")


def supervision(folder: Path) -> Export:
    """supervision, as_coco: all ids from 0, float areas of boxes; older versions write a polygon without its list."""
    annotations = [
        {
            "id": number, "image_id": thing.picture, "category_id": int(thing.name == "mug"),
            "bbox": [float(value) for value in thing.box], "area": float(thing.area),
            "segmentation": polygon(thing) if number else [polygon(thing)], "iscrowd": 0,
        }
        for number, thing in enumerate(DRAWN)
    ]  # fmt: skip
    content = {
        "info": {},
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": [
            {"id": k, "name": n, "supercategory": "common-objects"} for k, n in enumerate(("kettle", "mug"))
        ],
        "images": _images(("a.png", "b.png"), 0, license=1, date_captured="01/01/2026,00:00:00"),
        "annotations": annotations,
    }
    return _write(folder, content, ("images/a.png", "images/b.png"), "images", with_masks=True)


def mmdetection(folder: Path) -> Export:
    """mmdetection's own sample: no `iscrowd`, `score` 1.0 beside the truth, image ids from 0, `info` null."""
    annotations = [
        {
            "bbox": list(thing.box), "area": float(thing.area), "score": 1.0,
            "category_id": 1 + (thing.name == "mug"), "id": number, "image_id": thing.picture,
        }
        for number, thing in enumerate(DRAWN, start=1)
    ]  # fmt: skip
    content = {
        "images": _images(("a.png", "b.png"), 0),
        "annotations": annotations,
        "categories": [{"id": k, "name": n, "supercategory": "none"} for k, n in ((1, "kettle"), (2, "mug"))],
        "licenses": [],
        "info": None,
    }
    return _write(folder, content, ("a.png", "b.png"), "")


EXPORTS: dict[str, Callable[[Path], Export]] = {
    "CVAT": cvat,
    "Label Studio": label_studio,
    "Roboflow": roboflow,
    "labelme": labelme2coco,
    "FiftyOne": fiftyone,
    "supervision": supervision,
    "mmdetection": mmdetection,
}
