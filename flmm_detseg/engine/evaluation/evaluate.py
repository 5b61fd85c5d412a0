"""Evaluation of a config's data sets: sharded over processes, resumable, with one results file.

A model call holds samples of one image, always the same ones, on a fixed number of CPU threads: floating-point
sums depend on both, and a single pixel on the other side of a threshold changes a figure. So figures, made
from facts about each record in a fixed order, do not depend on the number of processes or on the batch size. It costs
little: the samples of an image share its prefix, and one image's tokens keep a large model busy.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from flmm_detseg.cache.own_tensors import log_part_reports
from flmm_detseg.datasets import collate_samples
from flmm_detseg.datasets.readers import readers_of
from flmm_detseg.engine.checks.config_check import parse_overrides
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Options, Task
from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.evaluation.results import (
    RecordStore,
    fingerprint,
    source_hash,
    weights_hash,
)
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.registry import DATASETS, SCOPE
from flmm_detseg.utils.configs import config_file, config_name
from flmm_detseg.utils.lock import holding
from flmm_detseg.utils.outputs import refuse_overwrite
from flmm_detseg.utils.paths import find, places
from flmm_detseg.utils.provenance import file_hash, named_paths, versions
from flmm_detseg.utils.whole_files import write_json

# Samples of one image in one model call; fixed, see above. Bounds the memory of images with many expressions.
_MAX_SAMPLES_PER_CALL = 16
_MAX_LISTED_FILES = 20


@dataclass(frozen=True)
class EvaluationSet:
    """A data set to evaluate.

    Attributes:
        dataset: A reader or a mix.
        protocol: How it is evaluated, of :meth:`Task.protocol`.
        settings: All arguments it was built with, for the fingerprint.
    """

    dataset: Any
    protocol: dict[str, Any]
    settings: dict[str, Any]


def evaluate(options: Options, task: Task[Options]) -> dict[str, Any] | None:
    """Evaluates a config's model on its data sets; call it in every process of a launch.

    Args:
        options: What to evaluate and how.
        task: Kind of evaluation.

    Returns:
        In the main process: ``{"task", "metrics": {data set: figures}, "results": path, ...}``; None in
        others.

    Raises:
        ConfigError: Config or options cannot be used.
        CheckpointError: No checkpoint, or one that does not fit.
        DataError: A record cannot be used.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    config = read_config(options.config)
    config.merge_from_dict(parse_overrides(options.cfg_options, config, also=(task.config_key,)))
    checkpoint = options.checkpoint or config.get("load_from")
    source = None if checkpoint is None else _checkpoint_source(checkpoint)
    datasets = build_datasets(config, options, task)
    if options.out is not None:
        read = [str(file) for item in datasets.values() for file in item.dataset.annotation_files]
        refuse_overwrite(
            options.out,
            [config_file(options.config), checkpoint, getattr(options, "annotation_file", None), *read],
        )
    torch.manual_seed(0)  # untrained heads must be the same in every process and run
    model = model_from_config(
        config,
        checkpoint,
        untrained=options.untrained,
        device=state.device,
        allow_other_lmm=options.allow_other_lmm,
    )
    if state.is_main_process:
        log_part_reports(model)
    settings = json.dumps(config.model.to_dict(), sort_keys=True, default=str)
    # Checkpoints of further models (a detector's): their tensors are not part of the model, names do not show content.
    files = {str(p): file_hash(p) for p in named_paths(config.model.to_dict()) if p.is_file()}
    provenance = {"config": config.pretty_text, "model": settings, "checkpoint": source, "files": files}
    return evaluate_model(model, datasets, options, task, provenance)


def _checkpoint_source(path: str) -> dict[str, str]:
    file = find(path)
    if not file.exists():  # before minutes are spent on reading data and the LMM
        raise CheckpointError(f"checkpoint {path} does not exist ({places(path)})")
    return {"path": str(path), "sha256": file_hash(file)}


def evaluate_model(
    model: nn.Module,
    datasets: Mapping[str, EvaluationSet],
    options: Options,
    task: Task[Options],
    provenance: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Evaluates a built model on built data sets (arguments, result as :func:`evaluate`).

    Args:
        model: What the task asks; its tensors are part of the fingerprint.
        datasets: By name, as :func:`build_datasets` gives them.
        options: What to evaluate and how.
        task: Kind of evaluation.
        provenance: Facts to put into the results file.

    Returns:
        Figures per data set, and where the results file is; None in all processes but the main one.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    work_dir = Path(options.work_dir or Path("work_dirs") / config_name(options.config) / "eval")
    started, code, installed = time.time(), source_hash(), versions()
    with _cpu_threads(options.num_threads):
        weights = weights_hash(model)
    metrics: dict[str, dict[str, float]] = {}
    reports: dict[str, dict[str, Any]] = {}
    for item in datasets.values():
        task.check(model, item.dataset, options)
    for position, (name, item) in enumerate(datasets.items(), start=1):
        # The estimate of the remaining time (utils/eta.py) reads from it how many bars follow.
        title = f"{name} ({position} of {len(datasets)})"
        data = _data_hashes(item.dataset)
        identity = {
            "task": task.name, "data_set": name, "protocol": item.protocol, "settings": item.settings,
            "data": data, "weights": weights, "source": code, "versions": installed,
            "options": task.settings(options), "num_threads": options.num_threads,
            # Settings that keep every tensor (merge, prompts, sizes) change the figures all the same.
            "model": provenance.get("model"), "files": provenance.get("files"),
        }  # fmt: skip
        # One process's hash for all: checksums of another device may differ in the last digit.
        shared = [fingerprint(identity)]
        broadcast_object_list(shared)
        store = RecordStore(work_dir / f"{name}-{shared[0][:16]}", state.process_index)
        # Two at once would merge each other's records while they are written.
        lock = holding(store.folder / ".lock", f"evaluating {name} in {work_dir}")
        with _cpu_threads(options.num_threads), lock if state.is_main_process else nullcontext():
            records, num_resumed = _evaluate_dataset(
                model, item.dataset, store, options, task, state, name, title
            )
        if state.is_main_process:
            metrics[name] = task.figures(records, item.dataset, options)
            exported = task.export(records, item.dataset, work_dir / f"{name}.{task.name}", options)
            reports[name] = {
                "protocol": item.protocol, **task.conventions(options), "fingerprint": shared[0],
                "data_sha256": data, "data_report": item.dataset.report(), "records_file": str(store.file),
                "num_samples": _num_samples(item.dataset, options), "num_resumed": num_resumed,
                "exported": [str(file) for file in exported],
            }  # fmt: skip
    if not state.is_main_process:
        return None
    out = Path(options.out or work_dir / f"{task.file_stem(options)}.json")
    seconds = round(time.time() - started, 2)
    facts = {**task.summary(metrics), "seconds": seconds, "num_processes": state.num_processes}
    content = {
        "task": task.name, "metrics": metrics, "data_sets": reports, "options": asdict(options), **provenance,
        "weights_sha256": weights, "source_sha256": code, "versions": installed, **facts,
    }  # fmt: skip
    write_json(Path(out), content)
    num_resumed = sum(report["num_resumed"] for report in reports.values())
    shown = {name: task.line(figures) for name, figures in metrics.items()}
    return {"task": task.name, "metrics": shown, "results": str(out), "num_resumed": num_resumed, **facts}


def build_datasets(config: Config, options: Options, task: Task[Options]) -> dict[str, EvaluationSet]:
    """Builds the data sets a config lists for a task, with the protocol that the options ask for.

    Args:
        config: Lists them under the task's key.
        options: Splits, limits and protocol.
        task: What is evaluated.

    Returns:
        By name.

    Raises:
        ConfigError: The config lists none, or not the ones asked for, or a data set has no such protocol.
    """
    listed = task.entries(config, options)
    chosen = {
        name: entry
        for name, entry in listed.items()
        if not options.splits or name in options.splits or entry.get("split") in options.splits
    }
    known = set(listed) | {entry.get("split") for entry in listed.values()}
    unknown = [split for split in options.splits if split not in known]
    if unknown:
        raise ConfigError(
            f"{options.config}: no data set or split {unknown[0]!r}; it has {', '.join(listed)}"
        )
    return {name: _build_dataset(name, entry, options, task) for name, entry in chosen.items()}


def _build_dataset(
    name: str, entry: Mapping[str, Any], options: Options, task: Task[Options]
) -> EvaluationSet:
    settings = dict(entry)
    for key, value in task.overrides(options).items():
        if value is None:
            continue
        reader = settings["type"] if not isinstance(settings["type"], str) else DATASETS.get(settings["type"])
        if key not in inspect.signature(reader).parameters:
            raise ConfigError(f"data set {name!r} ({reader.__name__}) has no `{key}` to set to {value!r}")
        settings[key] = value
    dataset = task.asked(DATASETS.build({"_scope_": SCOPE, **settings}), options)
    _refuse_random(name, dataset)
    task.check_data(dataset, options)
    protocol = task.protocol(name, dataset, options)
    return EvaluationSet(dataset, protocol, {key: str(value) for key, value in settings.items()})


def _refuse_random(name: str, dataset: Any) -> None:
    """Refuses records whose words change from epoch to epoch, however deep in wrappers and mixes their reader is."""
    for reader in readers_of(dataset):
        for key in ("queries", "sentences", "wordings", "turns"):
            if getattr(reader, key, None) == "random":
                raise ConfigError(
                    f"data set {name!r}: evaluation needs {key} 'first' or 'all', not 'random' "
                    f"({type(reader).__name__})"
                )


def _data_hashes(dataset: Any) -> dict[str, str]:
    """sha256 by annotation file; of many files (one an image) one hash over all, by their common folder."""
    hashes = {str(path): file_hash(path) for path in dataset.annotation_files}
    if len(hashes) <= _MAX_LISTED_FILES:
        return hashes
    folder = os.path.commonpath(hashes)
    content = {os.path.relpath(path, folder): digest for path, digest in hashes.items()}
    return {f"{folder} ({len(hashes)} files)": fingerprint(content)}


def _num_samples(dataset: Any, options: EvaluationOptions) -> int:
    return len(dataset) if options.limit is None else min(options.limit, len(dataset))


def _evaluate_dataset(
    model: nn.Module,
    dataset: Any,
    store: RecordStore,
    options: Options,
    task: Task[Options],
    state: PartialState,
    name: str,
    title: str,
) -> tuple[list[dict[str, Any]], int]:
    """Evaluates what is not done yet; the main process gets all records and the number of samples resumed."""
    if state.is_main_process:
        if options.fresh:
            store.clear()
        store.merge()
    state.wait_for_everyone()
    done = store.done()
    ids = [dataset.record_id(index) for index in range(len(dataset))]
    if len(set(ids)) != len(ids):
        raise RunError(
            f"data set {name!r}: record ids are not unique; make them so, results are stored by them"
        )
    num_samples = _num_samples(dataset, options)
    calls = [call for call in _model_calls(dataset) if call[0] < num_samples]
    pending = [call for call in calls if any(ids[index] not in done for index in call)]
    mine = pending[state.process_index :: state.num_processes]
    for records in _run_calls(model, dataset, mine, options, task, title, show=state.is_main_process):
        store.append(records)
    state.wait_for_everyone()
    if not state.is_main_process:
        return [], 0
    found = store.merge()
    missing = [record_id for record_id in ids[:num_samples] if record_id not in found]
    if missing:
        raise RunError(
            f"data set {name!r}: {len(missing)} samples have no record, first {missing[0]}; run it again"
        )
    num_resumed = sum(len(call) for call in calls) - sum(len(call) for call in pending)
    return [record for record_id in ids[:num_samples] for record in found[record_id]], num_resumed


@contextmanager
def _cpu_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _model_calls(dataset: Any) -> list[list[int]]:
    """Indices of each model call: neighbouring samples of one image. A function of the data set alone."""
    calls: list[list[int]] = []
    last = None
    for index in range(len(dataset)):
        image_id = dataset.phrase_texts(index)[0]
        if image_id != last or len(calls[-1]) == _MAX_SAMPLES_PER_CALL:
            calls.append([])
        calls[-1].append(index)
        last = image_id
    return calls


def _run_calls(
    model: nn.Module,
    dataset: Any,
    calls: list[list[int]],
    options: Options,
    task: Task[Options],
    title: str,
    show: bool,
) -> Iterator[list[tuple[str, list[dict[str, Any]]]]]:
    """Runs the model calls in steps of about ``batch_size`` samples; yields record ids and facts."""
    steps: list[list[list[int]]] = []
    for call in calls:
        if not steps or sum(map(len, steps[-1])) + len(call) > options.batch_size:
            steps.append([])
        steps[-1].append(call)
    loader = DataLoader(
        task.shown(dataset, options),
        batch_sampler=[[index for call in step for index in call] for step in steps],
        collate_fn=collate_samples,
        num_workers=options.num_workers,
    )
    with (
        torch.no_grad(),
        tqdm(total=sum(map(len, calls)), desc=title, disable=not show, unit="sample") as bar,
    ):
        for step, batch in zip(steps, loader, strict=True):
            samples = iter(batch["samples"])
            records: list[tuple[str, Any]] = []
            for call in step:
                shown = list(islice(samples, len(call)))
                facts = task.facts(model, shown, dataset, options)
                ids = [sample.record_id for sample in shown]
                records += zip(ids, facts, strict=True)
                bar.update(len(call))
            yield records
