"""The reasoning set as files: records in LISA's ReasonSeg layout with further keys, and facts as question files.

::

    OUT/manifest.json                         what determines the files, counts, sha256
    OUT/{train,val,test}/000012_1.jpg, .json  second query about image 12 of the split
    OUT/facts/{train,test}.jsonl, blank.png   facts about kinds, for QuestionDataset
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld.reason.draw import ReasonItem, draw_items
from flmm_detseg.datasets.tinyworld.reason.facts import facts
from flmm_detseg.datasets.tinyworld.reason.query import joined
from flmm_detseg.datasets.tinyworld.reason.spec import QUERIES_PER_IMAGE, REASON_SPLITS, ReasonSpec
from flmm_detseg.datasets.tinyworld.reason.wordings import EXPLANATIONS
from flmm_detseg.datasets.tinyworld.reason_seg import mask_polygons
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.whole_files import dump_json, new_folder, read_json

MANIFEST = "manifest.json"
REASON_VERSION = "2"
_BLANK = 128


def write_reason(out: Path, spec: ReasonSpec, progress: bool = True) -> dict[str, Any]:
    """Writes the three splits and the facts.

    Args:
        out: Folder to write; new, empty, or holding this very set (then nothing is done).
        spec: How many images, and the seed.
        progress: Show a progress bar.

    Returns:
        The manifest (version, specification, counts of records by family, absence and held-out part, sha256 of
        every split's folder) and ``"written"``.

    Raises:
        ConfigError: The folder holds something else, or its files changed since they were written.
    """
    wanted = {"version": REASON_VERSION, "spec": asdict(spec)}
    manifest = out / MANIFEST
    if manifest.is_file():
        found = read_json(manifest, f"remove {out}, run again")
        if not isinstance(found, dict) or {key: found.get(key) for key in wanted} != wanted:
            raise ConfigError(
                f"{out} holds another reasoning set ({manifest}); remove it or name another --out"
            )
        changed = [name for name, digest in found["sha256"].items() if _digest(out / name) != digest]
        if changed:
            raise ConfigError(f"{out / changed[0]} changed since it was written. Remove {out}, run again.")
        return {**found, "written": False}
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no finished reasoning set (no {MANIFEST})")
    with new_folder(out) as folder:
        counts = {split: _write_split(folder / split, spec, split, progress) for split in REASON_SPLITS}
        counts["facts"] = _write_facts(folder / "facts")
        digests = {name: _digest(folder / name) for name in (*REASON_SPLITS, "facts")}
        facts_of_set = {**wanted, "counts": counts, "sha256": digests}
        # Last: a folder without it was not finished.
        (folder / MANIFEST).write_text(dump_json(facts_of_set, indent=1))
    return {**facts_of_set, "written": True}


def reason_record(item: ReasonItem, image_path: str, image_id: str) -> dict[str, Any]:
    """One record as JSON: LISA's keys, and further ones that its readers ignore.

    Args:
        item: What is asked and what answers it.
        image_path: Name of the image file beside it.
        image_id: The same for all records about one image.

    Returns:
        LISA's ``text`` (wordings), ``is_sentence``, ``shapes`` (none if nothing answers; shapes of one target share
        ``group_id``, its number in ``names``), ``imagePath``, ``imageHeight``, ``imageWidth``; and ``family``,
        ``wording`` (number of the first text's), ``combination``, ``held_out``, ``names``, ``absent``,
        ``explanation``, ``image_id``.
    """
    height, width = item.scene.image.shape[:2]
    shapes = [
        {
            "label": "target",
            "labels": ["target"],
            "shape_type": "polygon",
            "group_id": number,
            "points": points,
        }
        for number, obj in enumerate(item.query.targets)
        for points in mask_polygons(obj.mask, with_specks=True)
    ]
    return {
        "text": list(item.texts),
        "is_sentence": True,
        "shapes": shapes,
        "imagePath": image_path,
        "imageHeight": height,
        "imageWidth": width,
        "family": item.query.family,
        "wording": item.wording,
        "combination": item.query.combination,
        "held_out": item.held_out,
        "names": list(item.names),
        "absent": item.query.absent,
        "explanation": explanation(item),
        "image_id": image_id,
    }


def explanation(item: ReasonItem) -> str:
    """A short sentence why; it begins with the names of the targets in their order."""
    one, several, none = EXPLANATIONS[item.query.family]
    if not item.names:
        return f"{none.format(**item.query.slots)} ."
    why = (one if len(item.names) == 1 else several).format(**item.query.slots)
    return f"{joined(item.names)} {why} ."


def _write_split(folder: Path, spec: ReasonSpec, split: str, progress: bool) -> dict[str, Any]:
    folder.mkdir(parents=True)
    total = QUERIES_PER_IMAGE * spec.counts()[split]
    counts = {key: Counter[str]() for key in ("family", "absent", "held_out", "targets")}
    items = draw_items(spec, split)
    for position, item in enumerate(tqdm(items, f"reasoning, {split}", total, disable=not progress)):
        name = f"{item.image:06d}_{position % QUERIES_PER_IMAGE}"
        image = BytesIO()
        # Colours at full resolution: objects are few pixels wide.
        Image.fromarray(item.scene.image).save(image, "JPEG", quality=95, subsampling=0)
        (folder / f"{name}.jpg").write_bytes(image.getvalue())
        record = reason_record(item, f"{name}.jpg", f"{split}/{item.image:06d}")
        (folder / f"{name}.json").write_text(dump_json(record))
        for key in ("family", "absent", "held_out"):
            counts[key][str(record[key])] += 1
        counts["targets"][str(len(item.names))] += 1
    return {
        "images": total // QUERIES_PER_IMAGE,
        "records": total,
        **{key: dict(sorted(value.items())) for key, value in counts.items()},
    }


def _write_facts(folder: Path) -> dict[str, int]:
    folder.mkdir(parents=True)
    Image.fromarray(np.full((112, 112, 3), _BLANK, np.uint8)).save(folder / "blank.png")
    written = {}
    for name, held_out in (("train", False), ("test", True)):
        lines = [
            {
                "question_id": f"{name}-{number}",
                "image": "blank.png",
                "text": fact.text,
                "answer": fact.answer,
                "category": fact.name,
            }
            for number, fact in enumerate(facts(held_out))
        ]
        (folder / f"{name}.jsonl").write_text("".join(dump_json(line) + "\n" for line in lines))
        written[name] = len(lines)
    return written


def _digest(folder: Path) -> str | None:
    return file_hash(folder) if folder.is_dir() else None
