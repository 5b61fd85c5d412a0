"""Does the background cache ever change an answer? Streams asked with the cache and without it.

Every item of the TinyWorld streams is asked through a ``StreamSession`` whose cache keeps everything and through one
whose cache keeps vision features only (its hits are L1); each answer is made again without any cache, with the same
groups of patches. Greedy tokens have to be identical, all logits of all steps within the tolerance. A fifth run,
``cache="off"``, lets the partitioner draw the groups as if there were no stored background: where its groups are
others, another answer is no error; how often that happens is reported.

Frames that repeat an earlier frame exactly are counted apart: a plain prefix cache serves them, too. Encodings:
``png``, ``jpeg``, and ``mixed`` (each frame one of the two at random), which breaks the equality of pixels.

Example: ``python benchmarks/cache_exactness.py`` (about 6 minutes on one idle core); ``--items 60`` for a smoke test.
Exit code 2 when anything differs.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from stream_parts import streams
from torch import Tensor
from tqdm import tqdm

from flmm_detseg.cache import Answer, BackgroundCache, CachedLMM, CacheSettings, StreamSession
from flmm_detseg.cache.regions.partition import letterbox_tiles
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.datasets.tinyworld.streams import STREAM_KINDS, StreamItem
from flmm_detseg.errors import DataError
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cache" / "tiny_stream_screens.py"
SHARES = {"png": 0.14, "jpeg": 0.07, "mixed": 0.04}
MAX_NEW_TOKENS = 16


@dataclass
class Compared:
    """Answers of one level against their cold runs."""

    items: int = 0
    exact_repeats: int = 0
    different_tokens: int = 0
    max_logit_difference: float = 0.0
    cold_tokens: int = 0


@dataclass
class Cell:
    """Streams of one kind and encoding, exact repeats left out."""

    items: int = 0
    levels: Counter[str] = field(default_factory=Counter)
    live_share_of_hits: float = 0.0
    right: int = 0
    off_same_groups: int = 0
    off_agrees: int = 0


class Logits:
    """Every row of logits that a model makes, in order."""

    def __init__(self, model: CachedLMM) -> None:
        self._rows: list[Tensor] = []
        head = model.model.get_output_embeddings()
        head.register_forward_hook(lambda _module, _inputs, output: self._rows.append(output[0].detach()))

    def of(self, call: Callable[[], Answer]) -> tuple[Answer, Tensor]:
        """An answer and its logits, float32 ``[T, V]``."""
        self._rows.clear()
        found = call()
        return found, torch.cat(self._rows).float()


def compare(
    model: CachedLMM, logits: Logits, session: StreamSession, item: StreamItem, table: dict[str, Compared]
) -> Answer:
    """Asks with the cache, then cold with the same groups; counts into the table."""
    found, rows = logits.of(lambda: session.ask(item.image, item.question, max_new_tokens=MAX_NEW_TOKENS))
    sample = Sample(item.stream, item.image, "", (), prompt=item.question)
    cold, cold_rows = logits.of(
        lambda: answer(model, sample, partition=found.partition, max_new_tokens=MAX_NEW_TOKENS)
    )
    cell = table.setdefault(found.level, Compared())
    if item.exact_repeat:
        cell.exact_repeats += 1
    else:
        cell.items += 1
    cell.cold_tokens += len(cold.token_ids)
    if cold.token_ids != found.token_ids:
        cell.different_tokens += 1
    steps = min(len(rows), len(cold_rows))
    difference = float((rows[:steps] - cold_rows[:steps]).abs().max())
    cell.max_logit_difference = max(cell.max_logit_difference, difference)
    return found


def count_item(model: CachedLMM, cell: Cell, item: StreamItem, found: Answer, off: Answer) -> None:
    """Hit rates and what the free run says; exact repeats are left out by the caller."""
    cell.items += 1
    cell.levels[found.level] += 1
    if found.level != "miss":
        grid = model.prepare_text(Sample(item.stream, item.image, "", ())).grid
        live = ~letterbox_tiles(grid).ravel()
        cell.live_share_of_hits += float(found.partition.background_mask[live].mean())
    cell.right += found.text == item.answer
    cell.off_same_groups += bool((off.partition.group == found.partition.group).all())
    cell.off_agrees += off.token_ids == found.token_ids


def report(name: str, cell: Cell) -> dict[str, Any]:
    hits = cell.items - cell.levels["miss"]
    return {
        "stream": name,
        "items": cell.items,
        "hit_rate": round(hits / max(1, cell.items), 3),
        "reused_share_of_live_patches_in_hits": round(cell.live_share_of_hits / max(1, hits), 3),
        "answers_right": round(cell.right / max(1, cell.items), 3),
        "free_groups_equal": round(cell.off_same_groups / max(1, cell.items), 3),
        "free_answers_equal": round(cell.off_agrees / max(1, cell.items), 3),
    }


def benchmark(
    num_items: int, num_frames: int, seed: int, config: str, checkpoint: str | None, tolerance: float
) -> tuple[dict[str, Any], list[str]]:
    """Asks all streams.

    Args:
        num_items: Stream items in all, over all kinds and encodings.
        num_frames: Frames of a stream.
        seed: Of the world.
        config: Config of a model with a background cache.
        checkpoint: Its trained parts; None: LLaVA as it is, never trained on groups.
        tolerance: Largest allowed difference of a logit.

    Returns:
        Figures, ready for JSON, and what is wrong.
    """
    base, _ = stream_from_config(config, checkpoint, untrained=checkpoint is None)
    model = base.model
    settings = CacheSettings(min_tiles=20)
    caches = {"L2": BackgroundCache(settings), "L1": BackgroundCache(replace(settings, levels=("L1",)))}
    logits = Logits(model)
    levels: dict[str, dict[str, Compared]] = {"L2": {}, "L1": {}}
    cells: dict[str, Cell] = {}
    plan = {(kind, encoding): share for kind in STREAM_KINDS for encoding, share in SHARES.items()}
    with tqdm(total=num_items, desc="cache exactness") as bar:
        for items in streams(plan, num_items, num_frames, seed):
            # Streams of their own for the partitioner, which remembers frames.
            sessions = {
                name: StreamSession(model, cache, session_id=f"{items[0].stream}/{name}")
                for name, cache in caches.items()
            }
            free = StreamSession(model, None, session_id=f"{items[0].stream}/off")
            for item in items:
                found = {
                    name: compare(model, logits, sessions[name], item, levels[name]) for name in ("L2", "L1")
                }
                off = free.ask(item.image, item.question, cache="off", max_new_tokens=MAX_NEW_TOKENS)
                if not item.exact_repeat:
                    name = item.stream.rpartition("/")[0]
                    count_item(model, cells.setdefault(name, Cell()), item, found["L2"], off)
                bar.update()
    by_level = {
        "L2": levels["L2"].get("L2", Compared()),
        "L1": levels["L1"].get("L1", Compared()),
        "miss": levels["L2"].get("miss", Compared()),
    }
    stats = caches["L2"].stats()
    figures = {
        "benchmark": "cache_exactness",
        "items": num_items,
        "seed": seed,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "config": Path(config).stem,
        "trained": checkpoint is not None,
        "max_new_tokens": MAX_NEW_TOKENS,
        "levels": {level: vars(cell) for level, cell in by_level.items()},
        "streams": [report(name, cell) for name, cell in sorted(cells.items())],
        "bytes": stats["bytes"],
        "backgrounds": stats["backgrounds"],
    }
    return figures, problems(levels, tolerance)


def problems(levels: dict[str, dict[str, Compared]], tolerance: float) -> list[str]:
    """What must not be, over all levels of both caches."""
    found = []
    for cache, table in levels.items():
        for level, cell in table.items():
            name = f"{level} (cache of {cache})"
            if cell.different_tokens:
                found.append(f"{name}: {cell.different_tokens} answers differ from the cold run")
            if not cell.max_logit_difference <= tolerance:
                found.append(f"{name}: a logit differs by {cell.max_logit_difference:.2e}")
        if not table.get(cache, Compared()).items:
            found.append(f"no hit of level {cache}: nothing was compared; ask for more items")
    return found


def print_tables(figures: dict[str, Any]) -> None:
    """Markdown, for people."""
    print(
        "\n| level | items | exact repeats | different answers | largest logit difference |\n|---|---|---|---|---|"
    )
    for level, cell in figures["levels"].items():
        print(
            f"| {level} | {cell['items']} | {cell['exact_repeats']} | {cell['different_tokens']} "
            f"| {cell['max_logit_difference']:.1e} |"
        )
    names = list(figures["streams"][0]) if figures["streams"] else []
    print("\n| " + " | ".join(name.replace("_", " ") for name in names) + " |\n|" + "---|" * len(names))
    for row in figures["streams"]:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=2400, help="stream items in all")
    parser.add_argument("--frames", type=int, default=40, help="frames of a stream")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--config", default=str(CONFIG), help="of a model with a background cache")
    parser.add_argument("--checkpoint", help="its trained parts; without: LLaVA as it is")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest allowed difference of a logit")
    arguments = parser.parse_args()
    figures, wrong = benchmark(
        max(1, arguments.items),
        max(2, arguments.frames),
        arguments.seed,
        arguments.config,
        arguments.checkpoint,
        arguments.tolerance,
    )
    print_tables(figures)
    if wrong:
        print(json.dumps({**figures, "problems": wrong}))
        raise DataError(f"the cache is not exact: {'; '.join(wrong)}")
    return figures


if __name__ == "__main__":
    run_tool(main)
