"""Kills trainings, evaluations, labellings and world-makings, and fills their disk; the same command then goes on.

python benchmarks/kill_trials.py --trials 20 --seed 0

A trial: a job is killed (SIGKILL or SIGTERM) after a random share of the time it takes, or meets a full disk (a limit
on the size of its files: a random share of its largest one); then the same command runs to its end. Its result must be
that of an undisturbed run: the loss curve and every tensor, the figures and records, the labels, or the files of the
world. A job that ended before it was disturbed is tried again, earlier. Needs `data/models`; everything else is made in
a temporary folder. The last line is JSON; a failed trial gives exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flmm_detseg.models.checkpoint import load_checkpoint
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py"
_TRIES = 8
FAULTS = ("SIGKILL", "SIGTERM", "disk full")
ITERATIONS = 8
TRAINING = (
    f"train_cfg.max_iters={ITERATIONS}", "train_cfg.val_interval=1000", "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False", "default_hooks.logger.interval=1",
    "log_processor.window_size=1", "default_hooks.checkpoint.interval=1", "custom_hooks.1.interval=1000",
    "val_dataloader=None", "val_cfg=None", "val_evaluator=None",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command, and what its result is.

    Attributes:
        name: Of the kind of work.
        command: From a folder of its own to the command line.
        result: From that folder to what must be equal.
    """

    name: str
    command: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def tool(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]


def train_command(folder: Path) -> list[str]:
    return tool("train.py", CONFIG, "--work-dir", folder / "run", "--resume", "--cfg-options", *TRAINING)


def train_result(folder: Path) -> Any:
    losses: dict[int, float] = {}
    for log in sorted(
        (folder / "run").glob("*/vis_data/scalars.json"), key=lambda path: path.stat().st_mtime
    ):
        for line in log.read_text().splitlines():
            row = json.loads(line) if line.endswith("}") else {}
            if "loss" in row:
                losses[int(row.get("iter", row["step"]))] = row["loss"]
    tensors = load_checkpoint(folder / "run" / f"iter_{ITERATIONS}.pth")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return {"losses": losses, "tensors": digest.hexdigest()}


def eval_command(folder: Path) -> list[str]:
    return tool("eval_refcoco.py", CONFIG, "--untrained", "--work-dir", folder / "eval", "--batch-size", 1)


def eval_result(folder: Path) -> Any:
    records = {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("records.jsonl")
    }
    return {
        "metrics": json.loads((folder / "eval" / "refcoco.json").read_text())["metrics"],
        "records": records,
    }


def world_command(folder: Path) -> list[str]:
    return tool("make_tinyworld.py", "--out", folder / "world", "--images", 60, "--seed", 3, "--workers", 1)


def world_result(folder: Path) -> Any:
    files = (path for path in sorted((folder / "world").rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def label_command(folder: Path, images: Path, detector: Path) -> list[str]:
    wanted = (
        "--classes",
        "cat",
        "dog",
        "--detector",
        detector,
        "--out",
        folder / "labels.json",
        "--batch-size",
        1,
    )
    return tool(
        "pseudo_label.py",
        images,
        *wanted,
        "--box-threshold",
        0.0,
        "--text-threshold",
        0.0,
        "--min-score",
        0.0,
    )


def label_result(folder: Path) -> Any:
    return hashlib.sha256((folder / "labels.json").read_bytes()).hexdigest()


def make_detector(folder: Path) -> Path:
    """A tiny Grounding DINO with random weights, of the tests' parts."""
    sys.path.insert(0, str(ROOT / "tests"))
    from label_parts import save_detector

    save_detector(folder)
    return folder


def run(
    command: list[str], where: Path, kill: tuple[str, float] | None = None, limit: int | None = None
) -> int:
    """Exit code of a command; maybe killed after some seconds, or with files that may not grow over a size."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
    }

    def small_files() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # Through a pipe: the log itself is not to meet the limit.
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=small_files
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=None if kill is None else kill[1])
    except subprocess.TimeoutExpired:
        process.send_signal(getattr(signal, kill[0]))
        said, _ = process.communicate()
    with (where / "log.txt").open("ab") as log:
        log.write(said)
    return process.returncode


def largest_file(folder: Path) -> int:
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", nargs="+", help="training, evaluation, labelling, world (default: all, one after the other)"
    )
    args = parser.parse_args()
    random_numbers = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kill_trials_") as name:
        base = Path(name)
        (base / "data").mkdir()
        (base / "data" / "models").symlink_to(ROOT / "data" / "models")
        prepare = tool(
            "make_tinyworld.py", "--out", base / "data" / "tinyworld", "--images", 60, "--workers", 1
        )
        if run(prepare, base):
            raise SystemExit((base / "log.txt").read_text()[-2000:])
        images = base / "images"
        images.mkdir()
        for path in sorted((base / "data" / "tinyworld" / "coco" / "train2017").glob("*.png"))[:12]:
            Image.open(path).resize((100, 60)).save(
                images / path.name
            )  # a shape that the tiny detector can take
        detector = make_detector(base / "detector") if not args.jobs or "labelling" in args.jobs else base
        jobs = [
            Job("training", train_command, train_result),
            Job("evaluation", eval_command, eval_result),
            Job("labelling", lambda folder: label_command(folder, images, detector), label_result),
            Job("world", world_command, world_result),
        ]
        jobs = [job for job in jobs if not args.jobs or job.name in args.jobs]
        return trials(jobs, base, args.trials, args.seed, random_numbers)


def trials(jobs: list[Job], base: Path, count: int, seed: int, numbers: random.Random) -> dict[str, Any]:
    undisturbed: dict[str, tuple[Any, float, int]] = {}
    found: list[dict[str, Any]] = []
    begun = time.monotonic()
    for number in range(count):
        job, fault = jobs[number % len(jobs)], FAULTS[(number // len(jobs)) % len(FAULTS)]
        if job.name not in undisturbed:
            folder = empty_folder(base, f"undisturbed_{job.name}")
            started = time.monotonic()
            if run(job.command(folder), folder):
                raise SystemExit(f"{job.name} failed undisturbed: {(folder / 'log.txt').read_text()[-2000:]}")
            undisturbed[job.name] = job.result(folder), time.monotonic() - started, largest_file(folder)
        wanted, seconds, largest = undisturbed[job.name]
        share, code, tries = numbers.uniform(0.3, 0.95), 0, 0
        while (
            code == 0 and tries < _TRIES
        ):  # on a machine that became faster a job may end before it is disturbed
            folder = empty_folder(base, f"trial_{number}_{tries}")
            if fault == "disk full":
                code = run(job.command(folder), folder, limit=max(1, int(share * largest)))
            else:
                code = run(job.command(folder), folder, kill=(fault, share * seconds))
            share, tries = share if code else 0.7 * share, tries + 1
        tracebacks = (
            fault == "disk full" and "Traceback (most recent call last)" in (folder / "log.txt").read_text()
        )
        again = run(job.command(folder), folder)
        try:
            equal = again == 0 and job.result(folder) == wanted
        except Exception as error:
            equal = False
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        found.append(
            {"job": job.name, "fault": fault, "share": round(share, 2), "exit_code": code, "exit_code_again": again,
             "equal": equal, "traceback": tracebacks}
        )  # fmt: skip
        left = (time.monotonic() - begun) / (number + 1) * (count - number - 1)
        print(f"[{number + 1}/{count}, about {left:.0f} s left] {found[-1]}", file=sys.stderr, flush=True)
        if not equal:
            print((folder / "log.txt").read_text()[-1500:], file=sys.stderr)
    disturbed = sum(entry["exit_code"] != 0 for entry in found)
    failed = [entry for entry in found if not entry["equal"] or entry["traceback"] or entry["exit_code"] == 0]
    figures = {"trials": count, "seed": seed, "disturbed": disturbed, "failed": len(failed), "runs": found}
    if failed:
        print(json.dumps(figures))
        raise SystemExit(1)
    return figures


def empty_folder(base: Path, name: str) -> Path:
    folder = base / name
    folder.mkdir()
    (folder / "data").symlink_to(base / "data")
    return folder


if __name__ == "__main__":
    run_tool(main)
