"""What scores, boxes and masks of a large picture cost, next to the model that drew them.

A picture of 4096 x 4096 with ten phrases goes through ``Grounder.ground``. "After the model" is all that follows the
refiner's logits at the size of the picture: threshold, score, box, count, packing, the result. Making those logits
(SAM enlarges its maps to the picture) is reported separately; with a large model it vanishes.

Example: ``python benchmarks/large_pictures.py`` (about a minute on 2 cores, 2 GB); exits with 1 when the share is above
its limit. ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import flmm_detseg.heads.phrase_head as phrase_head
from flmm_detseg import Grounder
from flmm_detseg.errors import RunError
from flmm_detseg.structures import LogitMaps
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py"
CAPTION = "a red star is above the ring near a blue square ."


class Clock:
    """Adds up the processor time of wrapped functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return call(*values, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        return timed


def resident(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the picture some times.

    Returns:
        Figures, ready for JSON; medians over the repeats.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise RunError("the peak of memory is read from /proc: this benchmark runs on Linux only")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    grounder = Grounder.from_config(
        arguments.config, arguments.checkpoint, untrained=arguments.checkpoint is None
    )
    if arguments.checkpoint is None:
        # Random heads draw nothing: let the refiner's masks be patches of about half of the picture.
        low = torch.randn(1, 1, 8, 8)
        refine = grounder.model.heads["phrase"].sam.refine

        def patchy(*values: Any, **named: Any) -> list[LogitMaps]:
            maps = refine(*values, **named)
            side = tuple(maps[0].maps.shape[-2:])
            drawn = torch.nn.functional.interpolate(low, size=side, mode="bilinear")[0]
            for item in maps:
                item.maps.copy_(drawn.expand_as(item.maps))
            return maps

        grounder.model.heads["phrase"].sam.refine = patchy
    size = (arguments.size, arguments.size)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    words = [match.span() for match in re.finditer(r"\w+", CAPTION)]
    spans = [words[index % len(words)] for index in range(arguments.phrases)]
    grounder.ground(image[:64, :64], CAPTION, spans=spans)

    clock = Clock()
    kept = phrase_head.mask_prediction, LogitMaps.enlarge
    phrase_head.mask_prediction = clock.wrap("finish", phrase_head.mask_prediction)
    LogitMaps.enlarge = clock.wrap("enlarge", LogitMaps.enlarge)
    grounder._result = clock.wrap("result", grounder._result)
    rows = []
    try:
        for _ in tqdm(range(arguments.repeats), desc="large picture"):
            clock.seconds.clear()
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
            start = time.process_time()
            result = grounder.ground(image, CAPTION, spans=spans)
            total = time.process_time() - start
            enlarge = clock.seconds["enlarge"]
            after = clock.seconds["finish"] + clock.seconds["result"] - enlarge
            rows.append((total, after, enlarge, resident("VmHWM") - before))
            covered = float(result.mask(0).mean())
            del result
    finally:
        phrase_head.mask_prediction, LogitMaps.enlarge = kept
    total, after, enlarge, megabytes = (statistics.median(values) for values in zip(*rows))
    share = round(after / total, 3)
    return {
        "benchmark": "large_pictures",
        "device": "cpu, 1 thread, processor clock",
        "model": Path(arguments.config).name,
        "picture": list(size),
        "phrases": arguments.phrases,
        "covered_by_a_mask": round(covered, 3),
        "repeats": arguments.repeats,
        "seconds": round(total, 3),
        "seconds_after_the_model": round(after, 3),
        "seconds_enlarging_logits": round(enlarge, 3),
        "share_after_the_model": share,
        "share_with_enlarging": round((after + enlarge) / total, 3),
        "megabytes_above_the_model": round(megabytes, 1),
        "megabytes_per_phrase": round(megabytes / arguments.phrases, 1),
        "limits": {"share_after_the_model": arguments.max_share},
        "passed": share <= arguments.max_share,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=4096, help="side of the picture, pixels")
    parser.add_argument("--phrases", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="runs (median is taken)")
    parser.add_argument("--config", default=CONFIG, help="model; heads are random without a checkpoint")
    parser.add_argument("--checkpoint", help="trained heads")
    parser.add_argument("--max-share", type=float, default=0.2, help="limit of the share after the model")
    parser.add_argument("--quick", action="store_true", help="256 pixels, no limit: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.repeats, arguments.max_share = 256, 1, 1.0
    figures = benchmark(arguments)
    if not figures["passed"]:
        print(json.dumps(figures))
        sys.exit(1)
    return figures


if __name__ == "__main__":
    run_tool(main)
