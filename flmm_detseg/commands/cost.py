"""Computes what training recipes cost: memory, and hours on a GPU; nothing is measured, no weights are read.

flmm-detseg cost configs/llava/frozen_llava15_7b_refcoco_png.py --gpu a100-40

Without a config: all recipes of published LMMs. --write renews the table of docs/recipes.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.configs import config_file, shipped_configs
from flmm_detseg.utils.whole_files import write_text

_RECIPE = re.compile(r"(?!tiny/)\w+/(?:frozen_\w+_refcoco_png|detseg_lora\w*|lisa_(?!v1_)\w+)$")
_MARK = re.compile(r"(<!-- table: cost -->\n).*?(<!-- end of table -->)", re.DOTALL)
_HEAD = (
    "recipe", "10^9 parameters", "trained, 10^6", "weights, GB", "gradients and AdamW, GB", "rows, GB", "kept, GB",
    "largest operation, GB", "together, GB", "samples, 10^6", "10^12 operations a sample", "hours",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument(
        "config", nargs="?", help="config file or name; default: every recipe of a published LMM"
    )
    parser.add_argument("--gpu", default="a100-40", help="whose hours; default: a100-40")
    parser.add_argument(
        "--gpus",
        type=int,
        default=8,
        help="how many train: decides what a number of iterations is; default: 8",
    )
    parser.add_argument("--phrases", type=int, default=7, help="of a sample; default: 7, about PNG's mean")
    parser.add_argument(
        "--utilisation", type=float, nargs=2, metavar=("LOW", "HIGH"), default=(0.1, 0.4),
        help="share of the GPU's operations that are used; default: 0.1 0.4",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table between the marks of this page"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: per recipe its bytes, operations and hours.

    Raises:
        ConfigError: A config, the GPU, or a number cannot be used.
    """
    low, high = arguments.utilisation
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"--utilisation {low} {high}: two shares are needed, the lower one first, above 0 and at most 1"
        )
    names = (
        [arguments.config]
        if arguments.config
        else [name for name in shipped_configs() if _RECIPE.match(name)]
    )
    files = {name: config_file(name) for name in names}
    if arguments.write is not None and not _MARK.search(arguments.write.read_text(encoding="utf-8")):
        raise ConfigError(f"{arguments.write} has no marks of the table (<!-- table: cost -->)")
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.models.cost import GPUS, training_cost
    from flmm_detseg.models.from_config import read_config

    if arguments.gpu not in GPUS:
        raise ConfigError(f"--gpu {arguments.gpu} is not known; there are {', '.join(GPUS)}")
    gpu = GPUS[arguments.gpu]
    figures: dict[str, Any] = {}
    rows = []
    for name, file in files.items():
        cost = training_cost(read_config(file), gpus=arguments.gpus, phrases=arguments.phrases)
        hours = [cost.hours(gpu, share) for share in (high, low)]
        figures[name] = {
            "memory_bytes": cost.memory, "flops_per_sample": cost.flops, "samples": cost.samples, "gpu_hours": hours,
        }  # fmt: skip
        rows.append(_row(name, cost, hours))
    table = "".join(f"| {' | '.join(row)} |\n" for row in (_HEAD, ("---",) * len(_HEAD), *rows))
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        write_text(arguments.write, _MARK.sub(lambda found: f"{found[1]}{table}{found[2]}", page))
    print(table, end="")
    return {"computed": True, "gpu": arguments.gpu, "gpus": arguments.gpus, "recipes": figures}


def _row(name: str, cost: Any, hours: list[float | None]) -> tuple[str, ...]:
    parts = (cost.weights, cost.optimizer, cost.rows, cost.kept, cost.largest, cost.memory)
    sizes = [f"{value / 1e9:.{2 if value < 1e9 else 1}f}" for value in parts]
    if cost.dense:
        sizes[3] += "\\*"
    first, last = hours
    return (
        f"`{name}`",
        f"{cost.parameters / 1e9:.1f}",
        f"{cost.trained / 1e6:.0f}",
        *sizes,
        "?" if cost.samples is None else f"{cost.samples / 1e6:.2f}",
        f"{cost.flops / 1e12:.1f}",
        "?" if first is None or last is None else f"{first:.0f} to {last:.0f}",
    )
