"""Valid files of every kind that is read, and the road that reads each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataset_files import SIZE, box_polygon, own_line, write_image, write_png, write_refcoco
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as coco_mask
from reasoning_files import reason_files, write_grandf, write_grefcoco
from torch import nn

from flmm_detseg import datasets
from flmm_detseg.datasets.image_ids import read_images
from flmm_detseg.datasets.voc import VOCOptions, convert_voc, write_coco
from flmm_detseg.datasets.vqav2 import convert_vqav2, write_jsonl
from flmm_detseg.evaluation.box_records import box_record
from flmm_detseg.evaluation.coco_metric import coco_figures
from flmm_detseg.inference.grounder import read_image
from flmm_detseg.models.checkpoint import load_tensors, read_checkpoint
from flmm_detseg.models.from_config import read_config
from flmm_detseg.structures import Sample


@dataclass
class Reading:
    """What was read.

    Attributes:
        content: Fact by record, in a form that two readings can be compared by.
        counts: What a reader says it left out or changed, and why.
    """

    content: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A valid file and how it is read.

    Attributes:
        name: For the report.
        form: Which operators fit: ``json``, ``jsonl``, ``pickle``, ``xml``, ``picture``, ``label``, ``tensors`` or
            ``config``.
        folder: Holds the file and all that belongs to it; copied for every mutation.
        file: The file to change, relative to the folder.
        read: Reads a copy of the folder.
    """

    name: str
    form: str
    folder: Path
    file: str
    read: Callable[[Path], Reading]


class IllegalValue(Exception):
    """A reader passed on something that no later part can use."""


def check_sample(sample: Sample) -> None:
    """Checks what every sample promises (``structures/sample.py``), whatever file it came from."""
    height, width = sample.image_size
    problems = []
    if sample.image.dtype != np.uint8 or sample.image.shape != (height, width, 3) or min(height, width) < 1:
        problems.append(f"image {sample.image.dtype} {sample.image.shape}")
    for key, text in (("text", sample.text), ("prompt", sample.prompt or ""), ("id", sample.record_id)):
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            problems.append(f"{key} {text!r}")
    for phrase in sample.phrases:
        for start, end in phrase.spans:
            if not 0 <= start < end <= len(sample.text):
                problems.append(f"span {start}, {end}")
    for reference in sample.meta.get("references", ()):
        if not isinstance(reference, str):
            problems.append(f"reference {reference!r}")
    if sample.masks is not None and (
        sample.masks.dtype != bool or sample.masks.shape != (len(sample.phrases), height, width)
    ):
        problems.append(f"masks {sample.masks.dtype} {sample.masks.shape}")
    dense = sample.dense
    if dense is not None and dense.boxes_xyxy is not None:
        boxes = dense.boxes_xyxy
        if (
            not np.isfinite(boxes).all()
            or (boxes < 0).any()
            or (boxes > [width, height, width, height]).any()
        ):
            problems.append(f"boxes {boxes.tolist()}")
        if (boxes[:, 2:] <= boxes[:, :2]).any():
            problems.append(f"empty boxes {boxes.tolist()}")
    if dense is not None and dense.masks is not None and dense.masks.shape[1:] != (height, width):
        problems.append(f"masks {dense.masks.shape}")
    if problems:
        raise IllegalValue(f"{sample.record_id}: {'; '.join(problems)}")


def fact_of(sample: Sample) -> str:
    """A hash of all that a sample says, paths apart."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value):
            for item in dataclasses.fields(value):
                if item.name not in ("image_id", "record_id"):
                    add(getattr(value, item.name))
        elif isinstance(value, Mapping):
            for key in sorted(set(value) - {"line"}, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            whole = isinstance(value, int) and not isinstance(value, bool)
            digest.update(repr(float(value) if whole else value).encode())

    add(sample)
    return digest.hexdigest()


def read_dataset(dataset: datasets.GroundingDataset) -> Reading:
    """Reads all samples, and what the reader says it left out."""
    reading = Reading(counts=dataset.report())
    for index in range(len(dataset)):
        sample = dataset[index]
        check_sample(sample)
        reading.content[sample.record_id] = fact_of(sample)
    return reading


def _checked(kind: str, **arguments: Any) -> Reading:
    return read_dataset(getattr(datasets, kind)(**arguments, policy="skip", verify_images=True))


# --- own JSONL, with a picture and two masks ---


def _own(folder: Path) -> None:
    write_image(folder / "picture.png", 3)
    write_image(folder / "photo.jpg", 4)
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[5:20, 10:30] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rle = coco_mask.encode(np.asfortranarray(mask > 0))
    polygon = {"polygon": [box_polygon(2, 3, 20, 30)]}
    counts = {"rle": {"size": list(SIZE), "counts": rle["counts"].decode()}}
    picture = {"text": "a dog", "mask": {"png": "mask.png"}, "box": [10, 5, 30, 20]}
    lines = [
        own_line(id="first", prompt="What is there?", phrases=[{"span": [0, 5], "mask": polygon}]),
        own_line(id="second", caption="a café beside a dog", phrases=[picture]),
        own_line(id="third", image="photo.jpg", phrases=[{"spans": [[0, 5], [11, 16]], "mask": counts}]),
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _read_own(folder: Path) -> Reading:
    return _checked("JSONLDataset", file=str(folder / "own.jsonl"))


def _read_picture(name: str) -> Callable[[Path], Reading]:
    def read(folder: Path) -> Reading:
        reading = _read_own(folder)
        array = read_image(str(folder / name), "picture")
        reading.content["path"] = hashlib.sha256(array.tobytes()).hexdigest()
        # The same picture given as a PIL image must not be read as another one.
        with Image.open(folder / name) as image:
            if not np.array_equal(read_image(image, "picture"), array):
                raise IllegalValue("path and PIL image give different pictures")
        return reading

    return read


# --- COCO ---


def _coco(folder: Path) -> None:
    images, annotations = [], []
    for number in range(3):
        name = f"{number + 1:012d}.png"
        write_image(folder / "images" / name, number)
        images.append({"id": number + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for index in range(2):
            x0, y0 = 3 + 25 * index, 4 + number
            segmentation: Any = [box_polygon(x0, y0, x0 + 20, y0 + 15)]
            if index:
                mask = np.zeros(SIZE, dtype=np.uint8)
                mask[y0 : y0 + 15, x0 : x0 + 20] = 1
                rle = coco_mask.encode(np.asfortranarray(mask))
                segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
            annotations.append(
                {
                    "id": 10 * (number + 1) + index,
                    "image_id": number + 1,
                    "category_id": 1 + index,
                    "bbox": [x0, y0, 20, 15],
                    "area": 300,
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }  # fmt: skip
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "excluded.json").write_text(json.dumps([3]))


def _read_coco(folder: Path) -> Reading:
    return _checked(
        "COCOInstancesDataset",
        ann_file=str(folder / "instances.json"),
        image_dir=str(folder / "images"),
        with_masks=True,
    )


def _read_truth(valid: Path) -> Callable[[Path], Reading]:
    """Figures of fixed predictions against a mutated annotation file, by both backends."""
    records: list[Any] = []

    def read(folder: Path) -> Reading:
        if not records:
            files = str(valid / "instances.json"), str(valid / "images")
            data = datasets.COCOInstancesDataset(*files, with_masks=True)
            for sample in map(data.__getitem__, range(len(data))):
                truth = sample.dense
                prediction = InstanceData(
                    bboxes=torch.tensor(truth.boxes_xyxy),
                    labels=torch.tensor(truth.labels),
                    scores=torch.linspace(0.9, 0.5, len(truth.labels)),
                    masks=torch.tensor(truth.masks),
                )
                records.append(box_record(sample, prediction))
        figures = [
            coco_figures(
                records, ("cat", "dog"), annotation_file=str(folder / "instances.json"), backend=backend
            )
            for backend in ("pycocotools", "faster")
        ]
        for key, value in figures[0].items():
            other = figures[1].get(key)
            if isinstance(value, float) and not math.isclose(value, other, abs_tol=1e-6):
                raise IllegalValue(f"{key}: pycocotools {value}, faster-coco-eval {other}")
            if isinstance(value, float) and not (0 <= value <= 1 or value == -1):
                raise IllegalValue(f"{key} is {value}")
        return Reading(content={key: repr(value) for key, value in figures[0].items()})

    return read


def _read_excluded(folder: Path) -> Reading:
    reading = _checked(
        "COCOInstancesDataset", ann_file=str(folder / "instances.json"), image_dir=str(folder / "images"),
        exclude_image_ids_file=str(folder / "excluded.json"),
    )  # fmt: skip
    reading.content["excluded"] = repr(sorted(map(str, read_images(str(folder / "excluded.json")).ids)))
    return reading


# --- others ---


def _voc(folder: Path) -> None:
    (folder / "xml").mkdir(parents=True, exist_ok=True)
    for stem in ("a", "b", "c"):
        write_image(folder / "images" / f"{stem}.jpg", ord(stem))
        objects = "".join(
            f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{hard}</difficult><bndbox>"
            f"<xmin>{x}</xmin><ymin>6</ymin><xmax>{x + 14}</xmax><ymax>22</ymax></bndbox></object>"
            for name, x, hard in (("dog", 5, 0), ("cat", 25, 1))
        )
        (folder / "xml" / f"{stem}.xml").write_text(
            f"<annotation><folder>images</folder><filename>{stem}.jpg</filename><size><width>{SIZE[1]}</width>"
            f"<height>{SIZE[0]}</height><depth>3</depth></size>{objects}</annotation>"
        )


def _read_voc(folder: Path) -> Reading:
    content, log = convert_voc(
        str(folder / "xml"), str(folder / "images"), VOCOptions(policy="skip"), progress=False
    )
    write_coco(content, str(folder / "voc.json"))
    reading = _checked(
        "COCOInstancesDataset", ann_file=str(folder / "voc.json"), image_dir=str(folder / "images")
    )
    reading.counts["voc"] = {**log.counts(), **{key: len(value) for key, value in log.dropped.items()}}
    return reading


def _read_refcoco(folder: Path) -> Reading:
    return _checked(
        "RefCOCODataset", refs_file=str(folder / "refs(unc).p"), instances_file=str(folder / "instances.json"),
        image_dir=str(folder / "images"), split="val", sentences="all", layout="split",
    )  # fmt: skip


def _read_png(folder: Path) -> Reading:
    return _checked(
        "PNGDataset",
        narratives_file=str(folder / "png_coco_val2017.json"),
        panoptic_json=str(folder / "panoptic_val2017.json"),
        panoptic_dir=str(folder / "panoptic"),
        image_dir=str(folder / "images"),
    )


def _read_grefcoco(folder: Path) -> Reading:
    return _checked(
        "GRefCOCODataset", refs_file=str(folder / "grefs(unc).json"), split="val", sentences="all",
        instances_file=str(folder / "instances.json"), image_dir=str(folder / "images"), targets="each",
    )  # fmt: skip


def _read_grandf(folder: Path) -> Reading:
    return _checked("GranDfDataset", file=str(folder / "gcg.json"), image_dir=str(folder / "images"))


def _read_reason_seg(folder: Path) -> Reading:
    return _checked("ReasonSegDataset", folder=str(folder), queries="all")


def _conversations(folder: Path) -> None:
    entries = []
    for number in range(3):
        write_image(folder / "images" / f"{number:012d}.png", number)
        turns = [
            {"from": "human", "value": "<image>\nWhat is there?"},
            {"from": "gpt", "value": f"A dog and {number} cats."},
            {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "On the left."},
        ]  # fmt: skip
        entries.append({"id": f"{number:012d}", "image": f"{number:012d}.png", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(entries))


def _read_conversations(folder: Path) -> Reading:
    return _checked(
        "LLaVAInstructDataset", file=str(folder / "llava.json"), image_dir=str(folder / "images"), turns="all"
    )


def _vqa(folder: Path) -> None:
    questions, annotations = [], []
    for number in range(3):
        write_image(folder / "images" / f"{number + 1:012d}.jpg", number)
        questions.append(
            {"question_id": 7 + number, "image_id": number + 1, "question": f"How many dogs are in {number}?"}
        )
        answers = [
            {"answer": "two" if vote < 7 else "2", "answer_confidence": "yes", "answer_id": vote + 1}
            for vote in range(10)
        ]
        annotations.append(
            {"question_id": 7 + number, "image_id": number + 1, "answer_type": "number", "answers": answers}
        )
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))


def _read_vqa(folder: Path) -> Reading:
    lines = convert_vqav2(str(folder / "questions.json"), str(folder / "annotations.json"), progress=False)
    write_jsonl(lines, folder / "vqa.jsonl")
    return _checked("QuestionDataset", file=str(folder / "vqa.jsonl"), image_dir=str(folder / "images"))


def _questions(folder: Path) -> None:
    write_image(folder / "images" / "a.png", 1)
    lines = [
        {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"},
        {
            "question_id": 2,
            "image": "a.png",
            "text": "Which? A. dog B. cat",
            "choices": ["dog", "cat"],
            "answer": "A",
        },
        {
            "question_id": 3,
            "image": "a.png",
            "text": "What is it?",
            "answers": ["dog"] * 10,
            "category": "other",
        },
        {
            "question_id": 4,
            "image": "a.png",
            "text": "What time?",
            "answer": "12",
            "session": "s",
            "boxes": [[1, 2, 10, 20]],
        },
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_questions(folder: Path) -> Reading:
    return _checked("QuestionDataset", file=str(folder / "questions.jsonl"), image_dir=str(folder / "images"))


def _semantic(folder: Path) -> None:
    for number in range(2):
        write_image(folder / "images" / f"{number}.png", number)
        label = np.full(SIZE, number, dtype=np.uint8)
        label[:10] = 255
        label[20:, 30:] = 2
        (folder / "maps").mkdir(exist_ok=True)
        Image.fromarray(label).save(folder / "maps" / f"{number}.png")


def _read_semantic(folder: Path) -> Reading:
    return _checked(
        "SemanticMapsDataset", label_dir=str(folder / "maps"), image_dir=str(folder / "images"),
        classes=["sky", "road", "tree"],
    )  # fmt: skip


class Part(nn.Module):
    """A small model with the names of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.lmm = nn.Linear(3, 3).requires_grad_(False)
        self.heads = nn.ModuleDict(
            {"phrase": nn.ModuleDict({"text_proj": nn.Linear(4, 2), "norm": nn.LayerNorm(2)})}
        )


def _tensors(folder: Path) -> None:
    torch.manual_seed(0)
    trained = {name: p.detach() for name, p in Part().named_parameters() if p.requires_grad}
    torch.save({"state_dict": trained, "meta": {"iter": 7, "cfg": "x = 1"}}, folder / "iter_7.pth")


def _read_tensors(folder: Path) -> Reading:
    model = Part()
    checkpoint = read_checkpoint(folder / "iter_7.pth")
    load_tensors(model, checkpoint.tensors, str(folder / "iter_7.pth"))
    reading = Reading()
    for name, value in model.named_parameters():
        if value.requires_grad:
            if not value.isfinite().all():
                raise IllegalValue(f"{name} is not finite")
            reading.content[name] = hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
    return reading


def _config(folder: Path) -> None:
    (folder / "base.py").write_text(
        "model = dict(width=3, heads=dict(phrase=dict(size=4)))\nmax_iters = 10\n"
    )
    (folder / "mine.py").write_text(
        '"""Is a wider head better?"""\n\nfrom mmengine.config import read_base\n\n'
        "with read_base():\n    from .base import *\n\n"
        "model.update(heads=dict(phrase=dict(size=8)))\nrate = 1e-4\nnames = ['a', 'b']\n"
    )


def _read_config(folder: Path) -> Reading:
    return Reading(
        content={"config": read_config(str(folder / "mine.py")).pretty_text.replace(str(folder), "")}
    )


def make_sources(root: Path) -> list[Source]:
    """Writes all valid files.

    Args:
        root: A folder of its own.

    Returns:
        What can be mutated, in a fixed order.
    """
    if root.exists():
        shutil.rmtree(root)

    def folder(name: str, write: Callable[[Path], Any]) -> Path:
        (root / name).mkdir(parents=True)
        write(root / name)
        return root / name

    own, coco, voc = folder("own", _own), folder("coco", _coco), folder("voc", _voc)
    refcoco, png = folder("refcoco", write_refcoco), folder("png", write_png)
    llava, vqa = folder("llava", _conversations), folder("vqa", _vqa)
    grefcoco, grandf = folder("grefcoco", write_grefcoco), folder("grandf", write_grandf)
    reason = folder("reason", reason_files)
    questions, semantic = folder("questions", _questions), folder("semantic", _semantic)
    return [
        Source("JSONL", "jsonl", own, "own.jsonl", _read_own),
        Source("image (PNG)", "picture", own, "picture.png", _read_picture("picture.png")),
        Source("image (JPEG)", "picture", own, "photo.jpg", _read_picture("photo.jpg")),
        Source("mask", "label", own, "mask.png", _read_own),
        Source("COCO", "json", coco, "instances.json", _read_coco),
        Source("COCO as ground truth", "json", coco, "instances.json", _read_truth(coco)),
        Source("excluded ids", "json", coco, "excluded.json", _read_excluded),
        Source("VOC", "xml", voc, "xml/b.xml", _read_voc),
        Source("RefCOCO references", "pickle", refcoco, "refs(unc).p", _read_refcoco),
        Source("RefCOCO instances", "json", refcoco, "instances.json", _read_refcoco),
        Source("gRefCOCO references", "json", grefcoco, "grefs(unc).json", _read_grefcoco),
        Source("GranD-f", "json", grandf, "gcg.json", _read_grandf),
        Source("ReasonSeg", "json", reason, "a.json", _read_reason_seg),
        Source("PNG narratives", "json", png, "png_coco_val2017.json", _read_png),
        Source("panoptic JSON", "json", png, "panoptic_val2017.json", _read_png),
        Source("panoptic map", "label", png, "panoptic/000000000001.png", _read_png),
        Source("LLaVA", "json", llava, "llava.json", _read_conversations),
        Source("VQA questions", "json", vqa, "questions.json", _read_vqa),
        Source("VQA annotations", "json", vqa, "annotations.json", _read_vqa),
        Source("questions", "jsonl", questions, "questions.jsonl", _read_questions),
        Source("label map", "label", semantic, "maps/1.png", _read_semantic),
        Source("checkpoint", "tensors", folder("checkpoint", _tensors), "iter_7.pth", _read_tensors),
        Source("config", "config", folder("config", _config), "mine.py", _read_config),
    ]
