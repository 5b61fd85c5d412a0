"""Texts as objects of the background cache: TinyWorld's screens with sources of regions side by side.

First: does RapidOCR find the clock and the score (digits of 13 pixels) at all, at which enlargement, in which time? A
text is found when its drawn pixels' box lies in the boxes found, up to ``--tolerance`` pixels. And what do 20 drawn
lines on a phone's screen of 1170 x 2532 pixels take? Then the same streams go
through a session of their own for each source: how many requests hit at L2, how many patches a request computed, how
many answers are right, and milliseconds by wall clock and by the processor's. Frames that repeat an earlier one pixel
by pixel are left out: every source hits on them. Figures are of several streams; the interval of a share or a mean is
95 %, by drawing streams again with replacement.

Sources: ``none`` (whole image background: the trivial rule), ``given`` (the boxes of everything that changes),
``difference``, ``texts``, ``texts read``, ``difference + texts``, and ``icon given + texts`` (the one thing that
changes and is no text is known). Without a checkpoint the separators are
untrained: times and hits mean the same, answers do not.

Example: ``python benchmarks/cache_texts.py --checkpoint FILE``; ``--streams 2 --frames 6`` for a smoke test. Needs the
extra ``ocr``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ttft_report import print_table

from flmm_detseg.cache import (
    BackgroundCache,
    CachedLMM,
    CacheSettings,
    FrameDifference,
    GivenRegions,
    NoRegions,
    Partitioner,
    PluginRegions,
    Regions,
    RegionSource,
    StreamSession,
    TextRegions,
    UnitedRegions,
)
from flmm_detseg.cache.regions.partition import letterbox_tiles
from flmm_detseg.cache.regions.text_reader import TextReader
from flmm_detseg.datasets.tinyworld.streams import CLOCK_QUESTION, SCORE_QUESTION, StreamItem, make_stream
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cache" / "tiny_stream_screens.py"
MAX_NEW_TOKENS = 8
_DRAWS = 2000


def sources(scale: float, padding: float) -> dict[str, Callable[[], RegionSource]]:
    """What is compared, in the order of the table."""

    def texts(read: bool = False) -> TextRegions:
        return TextRegions(scale=scale, padding=padding, read=read)

    return {
        "none": NoRegions,
        "given": lambda: GivenRegions("meta"),
        "difference": FrameDifference,
        "texts": texts,
        "texts read": lambda: texts(read=True),
        "difference + texts": lambda: UnitedRegions([FrameDifference(), texts()]),
        "icon given + texts": lambda: UnitedRegions([PluginRegions(Icon.find), texts()]),
    }


class Icon:
    """The box of the icon that changes, of the frame that is being asked about."""

    box_xyxy: tuple[float, ...] = ()

    @classmethod
    def find(cls, image: np.ndarray) -> Regions:
        """For :class:`PluginRegions`, whose functions see the image alone."""
        return Regions(boxes_xyxy=np.array([cls.box_xyxy], dtype=np.float32))


@dataclass
class Request:
    """One request: its stream, where the background came from, and what it took."""

    stream: int
    level: str
    right: bool
    computed: float
    milliseconds: float
    processor_ms: float
    detect_ms: float


class Timed(RegionSource):
    """A source, and how long it took since it was last asked for that."""

    def __init__(self, source: RegionSource) -> None:
        self.name, self.gives, self._source, self.seconds = source.name, source.gives, source, 0.0

    def find(self, sample: Sample) -> Any:
        """See :class:`RegionSource`."""
        started = time.perf_counter()
        found = self._source.find(sample)
        self.seconds += time.perf_counter() - started
        return found


def finding(streams: Sequence[Sequence[StreamItem]], scales: Sequence[float], tolerance: float) -> list[dict]:
    """How many clocks and scores are found at every scale."""
    rows = []
    frames = [item for items in streams for item in items]
    for scale in scales:
        for read in (False, True):
            source = TextRegions(scale=scale, read=read)
            source.find(Sample("warm", frames[0].image, "", ()))
            hits, extra, seconds = {"clock": 0, "score": 0}, 0, 0.0
            for item in frames:
                started = time.process_time()
                boxes = source.find(Sample("one", item.image, "", ())).boxes_xyxy
                seconds += time.process_time() - started
                clock, _, score = item.objects_xyxy
                true = {"clock": clock, "score": score}
                useful = np.zeros(len(boxes), dtype=bool)
                for name, (x0, y0, x1, y1) in true.items():
                    wide = boxes + np.array([-1, -1, 1, 1]) * tolerance
                    around = (wide[:, :2] <= (x0, y0)).all(1) & (wide[:, 2:] >= (x1, y1)).all(1)
                    hits[name] += bool(around.any())
                    useful |= around
                extra += int((~useful).sum())
            rows.append(
                {
                    "scale": scale,
                    "read": read,
                    "frames": len(frames),
                    **{name: round(count / len(frames), 3) for name, count in hits.items()},
                    "other boxes a frame": round(extra / len(frames), 2),
                    "processor ms a frame": round(1e3 * seconds / len(frames), 1),
                }
            )
    return rows


def phone_screen() -> list[dict]:
    """Finding and reading 20 drawn lines of a phone's screen, 1170 x 2532 pixels, at several scales."""
    image = np.full((2532, 1170, 3), 240, np.uint8)
    drawn = [f"Line {number} of the screen {number * 37 % 100}" for number in range(20)]
    for number, text in enumerate(drawn):
        cv2.putText(
            image, text, (60, 150 + number * 115), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (30, 30, 60), 3, cv2.LINE_AA
        )
    rows = []
    for scale in (1.0, 0.5, 0.25):
        for read in (False, True):
            reader = TextReader(scale=scale, read=read)
            reader.find([image[:300]])  # what is set up once
            started = time.process_time()
            (lines,) = reader.find([image])
            seconds = time.process_time() - started
            texts = {(line.text or "").replace(" ", "") for line in lines}
            right = sum(text.replace(" ", "") in texts for text in drawn)
            rows.append(
                {
                    "scale": scale,
                    "read": read,
                    "lines": len(lines),
                    "read right": right if read else None,
                    "processor s": round(seconds, 2),
                }
            )
    return rows


def asked(item: StreamItem, ask: str) -> tuple[str, str]:
    """A frame's question and its answer: its own, or about the clock and the score alternately."""
    if ask == "own":
        return item.question, item.answer
    wanted = (CLOCK_QUESTION, SCORE_QUESTION)[item.frame % 2]
    return next((question, answer) for question, answer, _ in item.questions if question == wanted)


def serve(
    model: CachedLMM, source: RegionSource, streams: Sequence[Sequence[StreamItem]], ask: str
) -> list[Request]:
    """All streams through one source, each with a session of its own and one cache for all."""
    timed = Timed(source)
    model.partitioner = Partitioner(timed, dilate=model.partitioner.dilate)
    cache = BackgroundCache(CacheSettings(min_tiles=20))
    found = []
    for number, items in enumerate(streams):
        session = StreamSession(model, cache, session_id=f"stream {number}")
        for item in items:
            timed.seconds, Icon.box_xyxy = 0.0, item.objects_xyxy[1]
            boxes = [list(box) for box in item.objects_xyxy]
            question, right_answer = asked(item, ask)
            wall, processor = time.perf_counter(), time.process_time()
            answer = session.ask(
                item.image, question, max_new_tokens=MAX_NEW_TOKENS, meta={"objects_xyxy": boxes}
            )
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if item.exact_repeat:
                continue
            grid = model.prepare_text(Sample("grid", item.image, "", ())).grid
            live = ~letterbox_tiles(grid).ravel()
            background = answer.partition.background_mask & live
            computed = live.sum() - (background.sum() if answer.level == "L2" else 0)
            right = answer.text == right_answer
            times = 1e3 * wall, 1e3 * processor, 1e3 * timed.seconds
            found.append(Request(number, answer.level, right, float(computed), *times))
    return found


def interval(values: Sequence[float], groups: Sequence[int], seed: int) -> list[float]:
    """95 % of the mean, streams drawn again with replacement."""
    by_group = [
        np.array([value for value, g in zip(values, groups, strict=True) if g == group])
        for group in sorted(set(groups))
    ]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_DRAWS):
        drawn = np.concatenate([by_group[n] for n in rng.integers(0, len(by_group), len(by_group))])
        means.append(drawn.mean())
    return [round(float(value), 3) for value in np.percentile(means, (2.5, 97.5))]


def row(name: str, found: Sequence[Request], seed: int) -> dict[str, Any]:
    """Figures of a source."""
    groups = [done.stream for done in found]
    hits = [float(done.level == "L2") for done in found]
    computed = [done.computed for done in found]
    misses = [done for done in found if done.level == "miss"]
    return {
        "source": name,
        "requests": len(found),
        "L2 hits": round(float(np.mean(hits)), 3),
        "L2 interval": interval(hits, groups, seed),
        "L1 hits": round(float(np.mean([done.level == "L1" for done in found])), 3),
        "patches computed": round(float(np.mean(computed)), 1),
        "patches interval": interval(computed, groups, seed),
        "right": round(float(np.mean([done.right for done in found])), 3),
        "right interval": interval([float(done.right) for done in found], groups, seed),
        "ms": round(float(np.median([done.milliseconds for done in found])), 1),
        "mean ms": round(float(np.mean([done.milliseconds for done in found])), 1),
        "mean processor ms": round(float(np.mean([done.processor_ms for done in found])), 1),
        "source's ms of a miss": round(float(np.median([done.detect_ms for done in misses])), 1)
        if misses
        else None,
    }


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns figures, ready for JSON."""
    streams = [
        make_stream("screen", arguments.seed, index, arguments.frames) for index in range(arguments.streams)
    ]
    found = finding([items[:6] for items in streams], arguments.scales, arguments.tolerance)
    print_table(found)
    phone = phone_screen()
    print_table(phone)
    session, _ = stream_from_config(
        arguments.config, arguments.checkpoint, untrained=arguments.checkpoint is None
    )
    rows = []
    for name, make in sources(arguments.scale, arguments.padding).items():
        rows.append(row(name, serve(session.model, make(), streams, arguments.ask), arguments.seed))
        print_table(rows[-1:])
    print_table(rows)
    return {
        "benchmark": "cache_texts",
        "streams": arguments.streams,
        "frames": arguments.frames,
        "ask": arguments.ask,
        "seed": arguments.seed,
        "config": Path(arguments.config).stem,
        "trained": arguments.checkpoint is not None,
        "finding": found,
        "phone_screen": phone,
        "rows": rows,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(CONFIG), help="of a model with a background cache")
    parser.add_argument("--checkpoint", help="its trained parts; without: LLaVA as it is")
    parser.add_argument("--streams", type=int, default=10, help="of screens")
    parser.add_argument("--frames", type=int, default=40, help="of a stream")
    parser.add_argument("--seed", type=int, default=5, help="of the world, and of the interval")
    parser.add_argument(
        "--ask",
        choices=("texts", "own"),
        default="texts",
        help="clock and score alternately, or the stream's questions",
    )
    parser.add_argument("--scale", type=float, default=2.0, help="enlargement for the detector of texts")
    parser.add_argument("--padding", type=float, default=0.0, help="of boxes of texts, in pixels")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of the search for texts"
    )
    parser.add_argument("--tolerance", type=float, default=1.0, help="pixels of a text outside of its box")
    return benchmark(parser.parse_args())


if __name__ == "__main__":
    run_tool(main)
