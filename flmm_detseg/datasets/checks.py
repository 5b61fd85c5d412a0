"""Reads every record of a data set and lists what cannot be used."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
}


@dataclass
class DataCheck:
    """What a check found.

    Attributes:
        name: Of the data set.
        num_records: Usable records.
        num_phrases: Phrases in them.
        num_objects: Boxes in them.
        problems: Unusable records.
        dropped: Number of records without anything to learn from, by reason.
        examples: Some usable samples, spread over the data set.
        metainfo: Facts of the data set, e.g. the names of its classes.
    """

    name: str
    num_records: int = 0
    num_phrases: int = 0
    num_objects: int = 0
    problems: list[Problem] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[Sample] = field(default_factory=list)
    metainfo: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Counts as plain containers."""
        return {
            "records": self.num_records,
            "phrases": self.num_phrases,
            **({"objects": self.num_objects} if "classes" in self.metainfo else {}),
            "problems": len(self.problems),
            "problems_by_kind": dict(Counter(problem.kind for problem in self.problems).most_common()),
            "dropped": self.dropped,
        }


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
        check.problems.append(Problem(name, "", str(error), "", "unusable data set"))
        return check
    check.problems += dataset.problems
    check.metainfo = dataset.metainfo
    check.dropped = {reason: len(records) for reason, records in dataset.dropped.items()}
    wanted = {len(dataset) * k // num_examples for k in range(num_examples)}
    for index in tqdm(range(len(dataset)), desc=f"checking {name}"):
        try:
            sample = dataset[index]
        except DataError as error:
            check.problems.append(_as_problem(name, dataset.record_id(index), error))
            continue
        check.num_records += 1
        check.num_phrases += len(sample.phrases)
        if sample.dense is not None and sample.dense.boxes_xyxy is not None:
            check.num_objects += len(sample.dense.boxes_xyxy)
        if index in wanted:
            check.examples.append(sample)
    if left_out := dataset.report().get("left_out"):
        check.dropped["object without room in the text"] = left_out
    return check


def _as_problem(name: str, record_id: str, error: DataError) -> Problem:
    problem = getattr(error, "problem", None)
    return problem if problem is not None else Problem(name, record_id, str(error), "", "unusable record")


def find_datasets(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Data sets in a config: of its data loaders and its ``*_eval`` dicts; mixes and wrappers give their members.

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
