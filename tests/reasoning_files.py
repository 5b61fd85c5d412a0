"""Small files of reasoning and open segmentation in their published forms, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from dataset_files import SIZE, write_image, write_refcoco
from pycocotools import mask as coco_mask


def polygon(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    """A rectangle whose four sides belong to it."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def shape(label: str, points: Any, **more: Any) -> dict[str, Any]:
    """As labelme writes it."""
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "points": points,
        "group_id": None,
        **more,
    }


def entry(texts: list[str], shapes: list[Any], **more: Any) -> dict[str, Any]:
    return {"text": texts, "is_sentence": True, "shapes": shapes, **more}


def write_reason_seg(folder: Path, entries: dict[str, Any]) -> Path:
    """An image and a JSON file for each entry, by name; bytes are written as they are."""
    for number, (name, content) in enumerate(entries.items()):
        write_image(folder / f"{name}.jpg", number)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(data)
    return folder


def reference(
    ref_id: int, ann_ids: list[int], *sentences: str, split: str = "val", **changes: Any
) -> dict[str, Any]:
    """An entry of gRefCOCO's refs file, about the first image of :func:`write_refcoco`."""
    return {
        "ref_id": ref_id, "ann_id": ann_ids, "image_id": 100, "split": split, "no_target": ann_ids == [-1],
        "category_id": [1] * len(ann_ids), "file_name": "COCO_train2014_000000000000.png",
        "sentences": [
            {"sent": text, "raw": text.upper(), "sent_id": 10 * ref_id + k, "tokens": text.split()}
            for k, text in enumerate(sentences)
        ],
        **changes,
    }  # fmt: skip


REFERENCES = [
    reference(1, [1000], "the left one", "left"),
    reference(2, [1001, 1000], "both of them"),
    reference(3, [-1], "the zebra", "a zebra"),
    reference(4, [1000], "of train", split="train"),
]


def write_grefcoco(root: Path, refs: list[Any] = REFERENCES) -> dict[str, str]:
    """gRefCOCO's files with RefCOCO's images and objects; returns the reader's arguments."""
    files = write_refcoco(root)
    files["refs_file"] = str(root / "grefs(unc).json")
    Path(files["refs_file"]).write_text(json.dumps(refs))
    return files


CAPTION = "A man holds a red kite near a man"


def bar(row: int) -> np.ndarray:
    """A mask of three rows."""
    found = np.zeros(SIZE, dtype=bool)
    found[row : row + 3, 5:20] = True
    return found


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed form of a mask."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def grounding(span: Any, *rows: int) -> dict[str, Any]:
    return {"token_positives": span, "rle_masks": [run_lengths(bar(row)) for row in rows]}


GROUNDED = {
    "file_name": "0.jpg",
    "caption": f'"{CAPTION}"',
    "groundings": {"a red kite": grounding([12, 22], 1), "A man": grounding([0, 5], 10, 20)},
}


def write_grandf(root: Path, content: Any = (GROUNDED, {**GROUNDED, "file_name": "1.jpg"})) -> dict[str, str]:
    """A file of grounded captions and two images; returns the reader's arguments."""
    for number in range(2):
        write_image(root / "images" / f"{number}.jpg", number)
    (root / "gcg.json").write_text(json.dumps(content))
    return {"file": str(root / "gcg.json"), "image_dir": str(root / "images")}


def reason_files(root: Path) -> Path:
    """Two good files: several targets with names and a region to ignore; none."""
    shapes = [
        shape("target", polygon(1, 1, 5, 5), group_id=0),
        shape("target", polygon(20, 20, 30, 30), group_id=1),
        shape("ignore", polygon(40, 1, 50, 5)),
    ]
    named = entry(["one ?", "two ?"], shapes, names=["the ring", "the star"], family="odd", absent=None)
    return write_reason_seg(
        root, {"a": named, "b": entry(["three ?"], [], absent="kind", explanation="no .")}
    )
