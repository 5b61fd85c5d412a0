"""Memory and time of many phrases on one picture, against few: both should not grow with their number.

Every measurement is a process of its own: a process that has had memory keeps some of it. It loads the model, grounds
two phrases to warm up, and then all of them; memory is the peak of the resident set above what it had before.

Example: ``python benchmarks/phrases.py`` (about 2 minutes on 2 cores, 1.5 GB); exits with 1 when a ratio is above its
limit. ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg import Grounder
from flmm_detseg.errors import RunError
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py"
CAPTION = " ".join(["a red star is above the ring near a blue square ."] * 8)


def some_spans(count: int) -> list[tuple[int, int]]:
    """Different stretches of the caption, of one to about thirteen words; the same ones first whatever the count."""
    words = [match.span() for match in re.finditer(r"\w+", CAPTION)]
    spans = [
        (words[first][0], words[first + length][1])
        for length in range(len(words))
        for first in range(len(words) - length)
    ]
    if count > len(spans):
        raise RunError(f"{count} phrases, but the caption has {len(spans)} stretches of words")
    return spans[:count]


def resident(name: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024


def measure(count: int, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement, in this process."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    grounder = Grounder.from_config(
        arguments.config, arguments.checkpoint, untrained=arguments.checkpoint is None
    )
    head = grounder.model.heads["phrase"]
    head.phrases_per_call = arguments.per_call or head.phrases_per_call
    head.phrases_per_pass = arguments.per_pass or head.phrases_per_pass
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    grounder.ground(image, CAPTION, spans=some_spans(2))
    spans = some_spans(count)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    start = time.process_time()
    result = grounder.ground(image, CAPTION, spans=spans)
    seconds = time.process_time() - start
    return {
        "megabytes": resident("VmHWM") - before,
        "ms_per_phrase": 1000 * seconds / count,
        "result_megabytes": (
            result.packed.bits.nbytes + result.coarse_logits.nbytes + result.refined.maps.nbytes
        )
        / 2**20,
    }


def in_a_process(count: int, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(count), "--size", str(size)]
    command += ["--config", str(arguments.config)]
    command += ["--checkpoint", arguments.checkpoint] if arguments.checkpoint else []
    command += ["--per-call", str(arguments.per_call), "--per-pass", str(arguments.per_pass)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RunError(f"measuring {count} phrases failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Few and many phrases alternately.

    Returns:
        Figures, ready for JSON; medians over the repeats.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise RunError("the peak of memory is read from /proc: this benchmark runs on Linux only")
    counts = (arguments.few, arguments.many)
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tqdm(total=2 * arguments.repeats, desc="phrases") as bar:
        for _ in range(arguments.repeats):
            for count in counts:
                found[count].append(in_a_process(count, arguments.size, arguments))
                bar.update()
    figures = {
        count: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for count, rows in found.items()
    }
    few, many = (figures[count] for count in counts)
    ratios = {name: round(many[name] / max(few[name], 0.01), 3) for name in ("megabytes", "ms_per_phrase")}
    limits = {"megabytes": arguments.max_memory, "ms_per_phrase": arguments.max_time}
    return {
        "benchmark": "phrases",
        "device": "cpu, 1 thread, processor clock",
        "model": Path(arguments.config).name,
        "picture": [arguments.size, arguments.size],
        "repeats": arguments.repeats,
        "phrases": {
            str(count): {name: round(value, 2) for name, value in row.items()}
            for count, row in figures.items()
        },
        "memory_ratio": ratios["megabytes"],
        "time_ratio": ratios["ms_per_phrase"],
        "limits": {"memory_ratio": arguments.max_memory, "time_ratio": arguments.max_time},
        "passed": all(limit is None or ratios[name] <= limit for name, limit in limits.items()),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=30, help="phrases that are the measure")
    parser.add_argument("--many", type=int, default=1000, help="phrases that are compared")
    parser.add_argument("--size", type=int, default=128, help="side of the picture, pixels")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind (median is taken)")
    parser.add_argument("--config", default=CONFIG, help="model; heads are random without a checkpoint")
    parser.add_argument("--checkpoint", help="trained heads")
    parser.add_argument("--max-memory", type=float, default=1.3, help="limit of memory, many / few")
    parser.add_argument("--max-time", type=float, default=1.2, help="limit of time per phrase, many / few")
    parser.add_argument("--per-call", type=int, default=0, help="phrases_per_call; 0: the head's own")
    parser.add_argument("--per-pass", type=int, default=0, help="phrases_per_pass; 0: the head's own")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="2 and 6 phrases, no limits: does it run?")
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.size, arguments)
    if arguments.quick:
        arguments.few, arguments.many, arguments.repeats = 2, 6, 1
        arguments.max_memory = arguments.max_time = None
    figures = benchmark(arguments)
    if not figures["passed"]:
        print(json.dumps(figures))
        sys.exit(1)
    return figures


if __name__ == "__main__":
    run_tool(main)
