"""What fewer attention channels cost: time and bytes of all heads of an LMM and of the best ones of a ranking.

Two parts, each of which alternates its ways within one run and reads the processor's clock (one thread): whole
predictions of the tiny recipe, LMM and refiner included (heads untrained: time does not depend on their weights), and
the U-Net alone at LLaVA-1.5-7B's sizes (24 x 24 rows of 1024 heads).

Example: ``python benchmarks/top_heads.py`` (about 2 minutes). ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_detseg import Grounder
from flmm_detseg.heads import UNetHead
from flmm_detseg.models.from_config import read_config
from flmm_detseg.registry import MODELS
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "ablations" / "top_heads.py"
SCENE = ROOT / "data" / "models" / "tiny_heads" / "scene.png"
CAPTION, PHRASES = "a white ring and the orange ring", ["a white ring", "the orange ring"]
FLOAT = 4


def alternating(ways: Mapping[int, Callable[[], object]], repeats: int) -> dict[int, float]:
    """Median processor seconds of each way; the first round is not counted."""
    seconds: dict[int, list[float]] = {count: [] for count in ways}
    for _ in range(repeats + 1):
        for count, way in ways.items():
            start = time.process_time()
            way()
            seconds[count].append(time.process_time() - start)
    return {count: statistics.median(found[1:]) for count, found in seconds.items()}


def whole_predictions(counts: list[int], repeats: int) -> dict[str, Any]:
    """The tiny recipe, two phrases on one picture."""
    config = read_config(str(CONFIG))
    image = np.asarray(Image.open(SCENE).convert("RGB"))
    ways, grounders = {}, {}
    for count in counts:
        settings = config.model.copy()
        settings.lmm.rows = dict(config.model.lmm.rows, heads=f"top:{count}")
        grounders[count] = grounder = Grounder(MODELS.build(settings).eval())
        ways[count] = lambda grounder=grounder: grounder.ground(image, CAPTION, PHRASES)
    seconds = alternating(ways, repeats)
    rows, cols = grounders[counts[0]].model.lmm.vision_grid
    return {
        str(count): {
            "ms_per_phrase": round(1000 * seconds[count] / len(PHRASES), 2),
            "time_ratio": round(seconds[count] / seconds[counts[0]], 3),
            "bytes_per_phrase": count * rows * cols * FLOAT,
        }
        for count in counts
    }


def large_unet(counts: list[int], side: int, base_channels: int, repeats: int) -> dict[str, Any]:
    """The U-Net alone, forward and backward, one phrase."""
    ways, parameters = {}, {}
    for count in counts:
        unet, maps = UNetHead(count, base_channels=base_channels), torch.rand(1, count, side, side)
        ways[count] = lambda unet=unet, maps=maps: unet(maps).sum().backward()
        parameters[count] = sum(parameter.numel() for parameter in unet.parameters())
    seconds = alternating(ways, repeats)
    return {
        str(count): {
            "ms_per_phrase": round(1000 * seconds[count], 1),
            "time_ratio": round(seconds[count] / seconds[counts[0]], 3),
            "bytes_per_phrase": count * side**2 * FLOAT,
            "parameters": parameters[count],
        }
        for count in counts
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds, of which the median is taken")
    parser.add_argument("--quick", action="store_true", help="one round at small sizes: does it run?")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    repeats = 1 if arguments.quick else arguments.repeats
    small = [32, 8] if arguments.quick else [32, 16, 8]
    large = ([8, 4], 8, 8) if arguments.quick else ([1024, 512, 256, 128], 24, 64)
    return {
        "benchmark": "top_heads",
        "device": "cpu, 1 thread, processor clock",
        "repeats": repeats,
        "tiny": whole_predictions(small, repeats),
        "unet_7b": large_unet(*large, repeats),
    }


if __name__ == "__main__":
    run_tool(main)
