"""Reads every record of a data set and lists what cannot be used."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_detseg.datasets.policy import Problem
from flmm_detseg.errors import DataError
from flmm_detseg.registry import DATASETS, SCOPE
from flmm_detseg.structures import Sample

# Settings that make a reader list each fault on its own: one reference per record, nothing raised on the way.
_CHECK_SETTINGS = {
    "policy": "skip",
    "verify_images": False,
    "sentences": "first",
    "layout": "split",
    "turns": "all",
    "queries": "first",
}

_SMALL, _APART = "box under one pixel", "box apart from its mask"


@dataclass
class DataCheck:
    """What a check found.

    Attributes:
        name: Of the data set.
        num_records: Usable records.
        num_phrases: Phrases in them.
        counts: What is learned from in them and what is left out, of the reader's ``count``; of label maps the classes
            that no pixel has.
        problems: Unusable records, and what makes the whole useless.
        remarks: What can be read and is hardly meant so.
        dropped: Number of records without anything to learn from, by reason.
        examples: Some usable samples, spread over the data set.
        files: What was read: annotation files and images.
        metainfo: Facts of the data set, e.g. the names of its classes.
    """

    name: str
    num_records: int = 0
    num_phrases: int = 0
    counts: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[Sample] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    metainfo: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Counts as plain containers."""
        return {
            "records": self.num_records,
            "phrases": self.num_phrases,
            **self.counts,
            "problems": len(self.problems),
            "problems_by_kind": _by_kind(self.problems),
            **({"remarks_by_kind": _by_kind(self.remarks)} if self.remarks else {}),
            "dropped": self.dropped,
        }


def _by_kind(problems: Sequence[Problem]) -> dict[str, int]:
    return dict(Counter(problem.kind for problem in problems).most_common())


def check_dataset(name: str, config: Mapping[str, Any], *, num_examples: int = 0) -> DataCheck:
    """Builds a data set and decodes every image and mask in it.

    Args:
        name: For the progress bar and the report.
        config: Of the data set. Where its class has them, ``policy``, ``sentences`` and ``layout`` are set
            so that each fault is listed on its own; of conversations, all turns are read.
        num_examples: Usable samples to keep for a picture.

    Returns:
        What was found. A data set that cannot be built at all has one problem of kind ``"unusable data
        set"``.

    Raises:
        ConfigError: The config itself is wrong.
    """
    reader = DATASETS.get(config["type"]) if isinstance(config["type"], str) else config["type"]
    known = inspect.signature(reader).parameters
    settings = dict(config) | {key: value for key, value in _CHECK_SETTINGS.items() if key in known}
    check = DataCheck(name)
    try:
        dataset = DATASETS.build({"_scope_": SCOPE, **settings})
    except DataError as error:
        # Where no record is left, each of them says why.
        unusable = Problem(name, "", str(error).rstrip("."), "", "unusable data set")
        check.problems += error.problems or [unusable]
        return check
    check.problems += dataset.problems
    check.metainfo = dataset.metainfo
    check.dropped = {reason: len(records) for reason, records in dataset.dropped.items()}
    wanted = {len(dataset) * k // num_examples for k in range(num_examples)}
    file = str(next(iter(dataset.annotation_files), name))
    check.files += map(str, dataset.annotation_files)
    readable: list[int] = []
    values: set[int] = set()
    for index in tqdm(range(len(dataset)), desc=f"checking {name}"):
        try:
            sample = dataset[index]
        except DataError as error:
            check.problems.append(_as_problem(name, dataset.record_id(index), error))
            continue
        readable.append(index)
        check.files.append(sample.image_id or "")
        check.num_phrases += len(sample.phrases)
        if sample.dense is not None:
            check.remarks += _doubtful_boxes(sample, file)
            if sample.dense.semantic is not None:
                values |= set(np.unique(sample.dense.semantic).tolist())
        if index in wanted:
            check.examples.append(sample)
    check.num_records = len(readable)
    check.counts = dataset.count(readable)
    if classes := check.metainfo.get("semantic_classes"):
        check.counts["classes_without_pixels"] = [n for k, n in enumerate(classes) if k not in values]
    _judge(check, dataset, readable, file)
    if left_out := dataset.report().get("left_out"):
        check.dropped["object without room in the text"] = left_out
    return check


def _doubtful_boxes(sample: Sample, file: str) -> list[Problem]:
    """Boxes without room for a pixel, and boxes that hold less than half of their own mask."""
    dense = sample.dense
    assert dense is not None
    found: list[Problem] = []
    for k, (x0, y0, x1, y1) in enumerate([] if dense.boxes_xyxy is None else dense.boxes_xyxy.tolist()):
        ids = sample.meta.get("ann_ids")
        where = f"{sample.record_id}: box {k}" if ids is None else f"annotation {ids[k]}"
        if min(x1 - x0, y1 - y0) < 1:
            message = f"its box is {x1 - x0:.3g} x {y1 - y0:.3g} pixels (W x H)"
            found.append(
                Problem(
                    file, where, message, "COCO's boxes are in pixels, not in parts of the image.", _SMALL
                )
            )
        if dense.masks is not None and (total := int(dense.masks[k].sum())):
            inside = int(dense.masks[k][math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)].sum())
            if inside < total / 2:
                message = f"its box holds {inside} of the {total} pixels of its mask"
                found.append(Problem(file, where, message, "Was one of the two scaled or moved?", _APART))
    return found


def _judge(check: DataCheck, dataset: Any, readable: Sequence[int], file: str) -> None:
    """Problems that only all records together show: nothing to learn from, or another convention of boxes."""
    counts = check.counts
    num_boxes = counts.get("objects", 0) + counts.get("crowds", 0)

    def problem(message: str, remedy: str, kind: str) -> None:
        check.problems.append(Problem(file, "", message, remedy, kind))

    if readable and counts.get("objects") == 0 and not check.problems:
        dropped = check.dropped.get("degenerate box", 0)
        message = (
            f"no object to learn from in {len(readable)} images: {counts['crowds']} are crowds (`iscrowd` 1, neither "
            f"learned nor counted), {dropped} have no area inside their image"
        )
        problem(message, "Set `iscrowd` to 0 where an annotation is one object.", "nothing to learn")
    classes = check.metainfo.get("semantic_classes", ())
    if readable and classes and len(counts["classes_without_pixels"]) == len(classes):
        problem(
            "no pixel of any class: all are unknown (255)", "Check `reduce_zero_label`.", "nothing to learn"
        )
    for kind, wrong in (
        (_SMALL, "in parts of the image instead of pixels"),
        (_APART, "of another size than the masks"),
    ):
        number = sum(remark.kind == kind for remark in check.remarks)
        if number > num_boxes / 2 > 0:
            message = f"{kind}: {number} of {num_boxes}, as if boxes were {wrong}"
            problem(
                message,
                "Convert them: `bbox` is [x, y, width, height] in pixels.",
                "boxes of another convention",
            )
    if num_boxes and getattr(dataset, "has_corners", lambda indices: False)(readable):
        message = f"{counts['cut_at_the_frame']} of {num_boxes} boxes leave the image, as if they were [x0, y0, x1, y1]"
        problem(
            message, "Convert them: `bbox` is [x, y, width, height] in pixels.", "boxes of another convention"
        )


def _as_problem(name: str, record_id: str, error: DataError) -> Problem:
    problem = getattr(error, "problem", None)
    return problem if problem is not None else Problem(name, record_id, str(error), "", "unusable record")


def find_datasets(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Data sets in a config: of its data loaders and its ``*_eval`` dicts; mixes and wrappers give their members.

    Args:
        config: A loaded config, or a part of it.

    Yields:
        Dotted key and data set config; equal configs come once.
    """
    seen: list[Mapping[str, Any]] = []
    for key in config:
        value = config[key]
        if key.endswith("_dataloader") and value:
            found = list(_members(f"{key}.dataset", value["dataset"]))
        elif key.endswith("_eval") and isinstance(value, Mapping):
            found = [pair for name in value for pair in _members(f"{key}.{name}", value[name])]
        else:
            continue
        for name, dataset in found:
            if dataset not in seen:
                seen.append(dataset)
                yield name, dataset


def _members(name: str, dataset: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    members = dataset.get("datasets")
    if isinstance(members, Mapping):
        inner = {f"{name}.datasets.{key}": member for key, member in members.items()}
    elif members is not None:
        inner = {f"{name}.datasets[{number}]": member for number, member in enumerate(members)}
    else:
        parts = {f"{name}.{key}": dataset.get(key) for key in ("dataset", "answers")}
        inner = {key: member for key, member in parts.items() if isinstance(member, Mapping)}
    if not inner:
        yield name, dataset
    for key, member in inner.items():
        yield from _members(key, member)
