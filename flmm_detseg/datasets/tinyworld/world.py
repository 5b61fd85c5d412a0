"""Writes a whole TinyWorld to disk in the layout of the real data sets.

::

    OUT/manifest.json, contact_sheet.png
    OUT/coco/{train2017,val2017}/000000000001.png           images (val2017 holds val, testA and testB)
    OUT/coco/annotations/instances_{train,val}2017.json     COCO instances
    OUT/coco/annotations/panoptic_{train,val}2017.json      COCO panoptic, PNGs in the folder of the same name
    OUT/coco/annotations/png_coco_{train,val}2017.json      Panoptic Narrative Grounding
    OUT/refcoco/refs(unc).p, OUT/refcoco/instances.json     RefCOCO (image_dir = OUT/coco)
    OUT/ade/annotations/{training,validation}/*.png         label maps of the images of the same name
    OUT/llava/{train,val}.json                              LLaVA conversations (image folder = OUT/coco)
    OUT/regions/{train,val,val_without}.jsonl               questions that point at objects (image folder = OUT/coco)
    OUT/reasonseg/{train,val}/*.jpg, *.json                 ReasonSeg (the larger set is written by reason/files.py)
    OUT/screens/{train,val}.json, SEQUENCE/FRAME.png        phone screens: same wallpaper, other foreground
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld import formats
from flmm_detseg.datasets.tinyworld.formats import ImageFile
from flmm_detseg.datasets.tinyworld.reason_seg import reason_seg_record
from flmm_detseg.datasets.tinyworld.region_questions import region_questions, without_regions
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.scene import SPLITS, TINYWORLD_VERSION, Scene
from flmm_detseg.datasets.tinyworld.screens import make_screens
from flmm_detseg.datasets.tinyworld.sheet import contact_sheet
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.rle import encode_rle
from flmm_detseg.utils.whole_files import new_folder

MANIFEST = "manifest.json"
# Of the manifest and the folders; the pictures and texts themselves belong to TINYWORLD_VERSION.
MANIFEST_FORMAT = 3
_PICTURE_FOLDERS = (
    "coco/train2017",
    "coco/val2017",
    "coco/annotations/panoptic_train2017",
    "coco/annotations/panoptic_val2017",
    "ade/annotations/training",
    "ade/annotations/validation",
    "reasonseg/train",
    "reasonseg/val",
    "screens",
)
# Share of the images in val, testA and testB; the rest is train.
HELD_OUT_SHARE = {"val": 0.08, "testA": 0.05, "testB": 0.05}
MIN_IMAGES = 20
_FIRST_IMAGE_ID = {"train": 1, "val": 500_000, "testA": 600_000, "testB": 700_000}
_REASON_EVERY = 4
SCREEN_FRAMES = 12


@dataclass(frozen=True)
class WorldSpec:
    """What decides the bytes of a world, beside :data:`TINYWORLD_VERSION`."""

    num_images: int
    seed: int

    def counts(self) -> dict[str, int]:
        """Images per split."""
        held_out = {split: max(4, round(share * self.num_images)) for split, share in HELD_OUT_SHARE.items()}
        return {"train": self.num_images - sum(held_out.values()), **held_out}


def write_world(out: Path, spec: WorldSpec, workers: int = 1, progress: bool = True) -> dict[str, Any]:
    """Draws the world and writes every format.

    Args:
        out: Folder to write; it must be new, empty, or hold this very world (then nothing is done).
        spec: Number of images and seed.
        workers: Processes that draw.
        progress: Show a progress bar.

    Returns:
        The manifest: format, version, seed, counts, sha256 of the annotation files, number of files and sha256
        of every folder of pictures; plus ``"written"``: False when the world was there already.

    Raises:
        ConfigError: Too few images, or the folder holds something else.
    """
    if spec.num_images < MIN_IMAGES:
        raise ConfigError(
            f"`num_images` is {spec.num_images}; a world with all splits needs at least {MIN_IMAGES}"
        )
    wanted = {
        "format": MANIFEST_FORMAT,
        "version": TINYWORLD_VERSION,
        "seed": spec.seed,
        "num_images": spec.num_images,
        "counts": spec.counts(),
    }
    existing = _existing_manifest(out, wanted)
    if existing is not None:
        return {**existing, "written": False}
    with new_folder(out) as folder:
        manifest = _write_world(folder, spec, wanted, workers, progress)
    return {**manifest, "written": True}


def _write_world(
    out: Path, spec: WorldSpec, wanted: dict[str, Any], workers: int, progress: bool
) -> dict[str, Any]:
    jobs = [(str(out), spec.seed, split, i) for split, count in spec.counts().items() for i in range(count)]
    _make_folders(out)
    results = tqdm(_map(jobs, workers), total=len(jobs), desc="TinyWorld", unit="image", disable=not progress)
    files = [*_write_annotations(out, results), *_write_screens(out, spec)]
    sheet = contact_sheet([make_scene(spec.seed, i, split) for split in SPLITS for i in range(4)], spec.seed)
    sheet.save(out / "contact_sheet.png")
    manifest = {
        **wanted,
        "files": {name: file_hash(out / name) for name in files},
        "folders": {name: _folder_facts(out / name) for name in _PICTURE_FOLDERS},
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def _existing_manifest(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    if not out.exists() or not any(out.iterdir()):
        return None
    path = out / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{out} is not empty and holds no finished TinyWorld (no {MANIFEST}): an interrupted run, or other "
            "files. Choose another --out, or remove the folder."
        )
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no manifest of a TinyWorld. Remove {out}, run again.")
    different = {key: (found.get(key), value) for key, value in wanted.items() if found.get(key) != value}
    if different:
        listed = "; ".join(f"{key}: there {old}, asked {new}" for key, (old, new) in different.items())
        raise ConfigError(
            f"{out} holds another TinyWorld ({listed}). Choose another --out, or remove the folder."
        )
    for name, digest in found["files"].items():
        if not (out / name).is_file() or file_hash(out / name) != digest:
            raise ConfigError(
                f"{out / name} is missing or changed since it was written. Remove {out}, run again."
            )
    for name, facts in found["folders"].items():
        present = _folder_facts(out / name)
        if present != facts:
            what = f"holds {present['num_files']} files instead of {facts['num_files']}"
            if present["num_files"] == facts["num_files"]:
                what = "has files that changed since they were written"
            raise ConfigError(f"{out / name} {what}. Remove {out}, run again.")
    return found


def _folder_facts(folder: Path) -> dict[str, Any]:
    """Number of files in a folder and its subfolders, and one sha256 of their names and bytes."""
    if not folder.is_dir():
        return {"num_files": 0, "sha256": None}
    return {"num_files": sum(path.is_file() for path in folder.rglob("*")), "sha256": file_hash(folder)}


def _make_folders(out: Path) -> None:
    for year in ("train2017", "val2017"):
        (out / "coco" / year).mkdir(parents=True, exist_ok=True)
        (out / "coco/annotations" / f"panoptic_{year}").mkdir(parents=True, exist_ok=True)
    for name in ("refcoco", "ade/annotations/training", "ade/annotations/validation", "llava", "regions"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        (out / "reasonseg" / name).mkdir(parents=True, exist_ok=True)


def _map(jobs: list[tuple[str, int, str, int]], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(_write_scene, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_write_scene, jobs, chunksize=16)


def _write_scene(job: tuple[str, int, str, int]) -> dict[str, Any]:
    """Draws one scene, writes its picture files and returns its annotation records."""
    out, (_, seed, split, index) = Path(job[0]), job
    scene = make_scene(seed, index, split)
    year = "train2017" if split == "train" else "val2017"
    image_id = _FIRST_IMAGE_ID[split] + index
    image = ImageFile(image_id, year, f"{image_id:012d}.png")
    Image.fromarray(scene.image).save(out / "coco" / year / image.file_name)
    panoptic, rgb = formats.panoptic_annotation(scene, image)
    Image.fromarray(rgb).save(out / "coco/annotations" / f"panoptic_{year}" / panoptic["file_name"])
    labels = "training" if split == "train" else "validation"
    Image.fromarray(formats.label_map(scene)).save(out / "ade/annotations" / labels / image.file_name)
    if split in ("train", "val") and index % _REASON_EVERY == 0:
        _write_reason_seg(out / "reasonseg" / split, scene, image)
    return {
        "split": split,
        "image": image.record(scene),
        "ref_image": image.record(scene, with_folder=True),
        "instances": formats.instance_annotations(scene, image),
        "panoptic": panoptic,
        "narrative": formats.png_narrative(scene, image, seed),
        "refs": formats.refcoco_refs(scene, image, seed),
        "llava": formats.llava_conversation(scene, image, seed),
        "regions": region_questions(scene, image_id, f"{year}/{image.file_name}", seed),
    }


def _write_reason_seg(folder: Path, scene: Scene, image: ImageFile) -> None:
    record = reason_seg_record(scene)
    if record is None:
        return
    name = f"{image.image_id:012d}"
    Image.fromarray(scene.image).save(folder / f"{name}.jpg", quality=95)
    (folder / f"{name}.json").write_text(json.dumps({**record, "imagePath": f"{name}.jpg"}))


def _write_annotations(out: Path, results: Iterable[dict[str, Any]]) -> list[str]:
    """Writes the annotation files; returns their names."""
    rows = list(results)
    contents: dict[str, bytes] = {}
    things = [c for c in formats.CATEGORIES if c["isthing"]]
    for year, train in (("train", True), ("val", False)):
        mine = [row for row in rows if (row["split"] == "train") == train]
        images = [row["image"] for row in mine]
        instances = [a for row in mine for a in row["instances"]]
        annotations = "coco/annotations"
        contents[f"{annotations}/instances_{year}2017.json"] = _json(_coco(images, instances, things))
        panoptic = _coco(images, [row["panoptic"] for row in mine], list(formats.CATEGORIES))
        contents[f"{annotations}/panoptic_{year}2017.json"] = _json(panoptic)
        # Narratives and conversations of val only: testA and testB belong to RefCOCO.
        narrated = [row for row in mine if row["split"] in ("train", "val")]
        contents[f"{annotations}/png_coco_{year}2017.json"] = _json([row["narrative"] for row in narrated])
        contents[f"llava/{year}.json"] = _json([row["llava"] for row in narrated])
        pointing = [line for row in narrated for line in row["regions"]]
        contents[f"regions/{year}.jsonl"] = _json_lines(pointing)
        if not train:
            contents["regions/val_without.jsonl"] = _json_lines(map(without_regions, pointing))
    refs = [ref for row in rows for ref in row["refs"]]
    # Through JSON: a pickle's bytes depend on which strings are one object, which workers change.
    contents["refcoco/refs(unc).p"] = pickle.dumps(json.loads(json.dumps(refs)), protocol=2)
    every = [a for row in rows for a in row["instances"]]
    contents["refcoco/instances.json"] = _json(_coco([row["ref_image"] for row in rows], every, things))
    for name, content in contents.items():
        (out / name).write_bytes(content)
    return list(contents)


def _write_screens(out: Path, spec: WorldSpec) -> list[str]:
    """Writes phone-screen sequences; returns the names of their lists."""
    names = []
    for split, share in (("train", 80), ("val", 400)):
        records = []
        for sequence in range(max(1, spec.num_images // share)):
            folder = out / "screens" / f"{split}_{sequence:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            for screen in make_screens(spec.seed, sequence, SCREEN_FRAMES, split):
                name = f"{folder.name}/{screen.frame:03d}.png"
                Image.fromarray(screen.image).save(out / "screens" / name)
                elements = [
                    {
                        "name": e.name,
                        "text": e.text,
                        "box_xyxy": e.box_xyxy,
                        "mask": encode_rle(e.mask),
                    }
                    for e in screen.elements
                ]
                questions = [{"question": q, "answer": a} for q, a in screen.questions]
                records.append(
                    {
                        "image": name,
                        "sequence_id": folder.name,
                        "frame": screen.frame,
                        "elements": elements,
                        "questions": questions,
                    }
                )
        names.append(f"screens/{split}.json")
        (out / names[-1]).write_bytes(_json(records))
    return names


def _coco(images: list[Any], annotations: list[Any], categories: list[Any]) -> dict[str, Any]:
    info = {"description": "TinyWorld", "version": TINYWORLD_VERSION}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _json_lines(lines: Iterable[Any]) -> bytes:
    return b"".join(_json(line) + b"\n" for line in lines)


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
