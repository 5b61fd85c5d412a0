"""Small files of reasoning and open segmentation in their published forms, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_files import SIZE, write_image


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


__all__ = ["SIZE", "entry", "polygon", "shape", "write_reason_seg"]
