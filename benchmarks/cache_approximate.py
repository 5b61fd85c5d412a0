"""Level L3 on streams whose pixels differ though nothing changed: does it hit, and do its answers hold?

Streams with sensor noise (normal, drawn anew for every frame, ``--noise`` grey values), and streams of which each
frame is PNG or JPEG at random. ``wall`` is the camera with everything but its moving objects painted over by a smooth
gradient, asked about those objects only: what L3 is made for. Every item is asked twice, in static sessions and caches
of their own: with L3 (the config's ``stream_cache``), and with ``cache="exact"``. Each answer from L3 is made again in
full with the same groups of patches.

Example: ``python benchmarks/cache_approximate.py --checkpoint FILE`` (about 2 minutes on one idle core). An exact
level whose answers differ is no matter of this benchmark: see ``cache_exactness.py``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from stream_parts import streams
from tqdm import tqdm
from ttft_report import print_table

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, FrameDifference, StreamSession
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.datasets.tinyworld.streams import StreamItem
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.streaming import settings_from_config, stream_from_config
from flmm_detseg.store.approximate import clopper_pearson
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cache" / "tiny_stream_screens_l3.py"
# Pixels around a moving object that are not painted over.
_AROUND = 2
MAX_NEW_TOKENS = 16


@dataclass
class Cell:
    """Answers about one kind of stream."""

    items: int = 0
    levels: Counter[str] = field(default_factory=Counter)
    exact_levels: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    agreeing: int = 0
    right: int = 0
    exact_right: int = 0


def noisy(item: StreamItem, grey_values: float, seed: int) -> StreamItem:
    """The frame as a sensor sees it."""
    rng = np.random.default_rng((seed, item.frame))
    noise = np.rint(rng.normal(0, grey_values, item.image.shape))
    return replace(item, image=np.clip(item.image + noise, 0, 255).astype(np.uint8))


def before_a_wall(item: StreamItem) -> StreamItem | None:
    """The frame's moving objects before a gradient; None when it has no question about them alone."""
    asked = [(question, reply) for question, reply, group in item.questions if group == "objects"]
    if not asked:
        return None
    height, width = item.image.shape[:2]
    rows, cols = np.mgrid[:height, :width]
    shade = 90 + 60 * (rows / height + cols / width) / 2
    image = np.stack([shade, shade + 8, shade + 16], axis=-1).astype(np.uint8)
    for x0, y0, x1, y1 in item.objects_xyxy:
        box = slice(max(0, y0 - _AROUND), y1 + _AROUND), slice(max(0, x0 - _AROUND), x1 + _AROUND)
        image[box] = item.image[box]
    question, reply = asked[item.frame % len(asked)]
    return replace(item, image=image, question=question, answer=reply)


def cases(
    noise: list[float], num_items: int, num_frames: int, seed: int
) -> Iterator[tuple[str, list[StreamItem]]]:
    """Streams with the name of their row."""
    for kind in ("camera", "slides", "screen"):
        for items in streams({(kind, "mixed"): 1.0}, num_items, num_frames, seed):
            yield f"{kind}, png or jpeg", items
    for grey_values in noise:
        for items in streams({("camera", "png"): 1.0}, num_items, num_frames, seed):
            yield f"camera, noise {grey_values:g}", [noisy(item, grey_values, seed) for item in items]
            wall = [before_a_wall(item) for item in items]
            yield f"wall, noise {grey_values:g}", [noisy(item, grey_values, seed) for item in wall if item]


def ask(model: CachedLMM, sessions: dict[str, StreamSession], item: StreamItem, cell: Cell) -> None:
    """Asks with and without L3; counts."""
    found, exact = (
        sessions[mode].ask(item.image, item.question, cache=mode, max_new_tokens=MAX_NEW_TOKENS)
        for mode in ("on", "exact")
    )
    cell.items += 1
    cell.levels[found.level] += 1
    cell.exact_levels[exact.level] += 1
    cell.right += found.text == item.answer
    cell.exact_right += exact.text == item.answer
    if found.level == "L3":
        cell.changed += found.num_stale
        sample = Sample(item.stream, item.image, "", (), prompt=item.question)
        full = answer(model, sample, partition=found.partition, max_new_tokens=MAX_NEW_TOKENS)
        cell.agreeing += full.token_ids == found.token_ids


def row(name: str, cell: Cell, confidence: float) -> dict[str, Any]:
    """Figures of a kind of stream."""
    near = cell.levels["L3"]
    return {
        "stream": name,
        "items": cell.items,
        "exact_hit_rate": round(1 - cell.exact_levels["miss"] / cell.items, 3),
        "hit_rate_with_l3": round(1 - cell.levels["miss"] / cell.items, 3),
        "l3_hits": near,
        "stale_patches_mean": round(cell.changed / near, 2) if near else None,
        "l3_answers_differ": near - cell.agreeing,
        "differ_upper_bound": round(clopper_pearson(near - cell.agreeing, near, confidence)[1], 3),
        "right_exact": round(cell.exact_right / cell.items, 3),
        "right_with_l3": round(cell.right / cell.items, 3),
    }


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns figures, ready for JSON.

    Raises:
        ConfigError: The config has no L3.
    """
    base, _ = stream_from_config(
        arguments.config, arguments.checkpoint, untrained=arguments.checkpoint is None
    )
    settings: CacheSettings = settings_from_config(arguments.config, base.model.device)
    if settings.approximate is None:
        raise ConfigError(f"{arguments.config}: its `stream_cache` has no `approximate`; L3 is off")
    # The guard would end L3 where it errs; here that is what is counted.
    tau = settings.approximate.tau if arguments.tau is None else arguments.tau
    counted = replace(settings, approximate=replace(settings.approximate, tau=tau, shadow_rate=0.0))
    source = base.model.partitioner.source
    if arguments.tau is not None and isinstance(source, FrameDifference):
        source.threshold = tau
    cells: dict[str, Cell] = {}
    drawn = list(cases(arguments.noise, arguments.items, arguments.frames, arguments.seed))
    with tqdm(total=sum(len(items) for _, items in drawn), desc="cache approximate") as bar:
        for number, (name, items) in enumerate(drawn):
            sessions = {
                mode: StreamSession(base.model, BackgroundCache(counted), session_id=f"{number}/{mode}")
                for mode in ("on", "exact")
            }
            for session in sessions.values():
                # What no frame repeats exactly would never be admitted.
                session.declare_static()
            for item in items:
                ask(base.model, sessions, item, cells.setdefault(name, Cell()))
                bar.update()
    rows = [row(name, cell, settings.approximate.confidence) for name, cell in cells.items()]
    print_table(rows)
    return {
        "benchmark": "cache_approximate",
        "config": Path(arguments.config).stem,
        "trained": arguments.checkpoint is not None,
        "tau": tau,
        "share": settings.approximate.share,
        "seed": arguments.seed,
        "rows": rows,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=160, help="frames of every kind of stream")
    parser.add_argument("--frames", type=int, default=40, help="frames of a stream")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="grey values")
    parser.add_argument(
        "--tau", type=int, help="instead of the config's tolerance, of L3 and of the difference of frames"
    )
    parser.add_argument("--seed", type=int, default=2, help="of the world")
    parser.add_argument("--config", default=str(CONFIG), help="of a model with a background cache and L3")
    parser.add_argument("--checkpoint", help="its trained parts; without: LLaVA as it is")
    return benchmark(parser.parse_args())


if __name__ == "__main__":
    run_tool(main)
