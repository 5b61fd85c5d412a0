"""Time to the first token: background cache (hit L2, hit L1, miss) against what one would do without it.

All ways run on the same weights, one after the other on each item: unmodified LLaVA; the same without letterbox; a
prefix cache for exactly repeated images; first-k recompute of a similar image's keys and values (MPIC-like); EVS-style
pruning of static image tokens (these two are approximate, so answers are compared with the unmodified). A time has all
in it: resizing, matching, the source of regions, vision, language model, copies of keys and values, storing, sampling.

``--width tiny``: the tiny LLaVA on all streams of TinyWorld, also where the cache loses. ``--width 7b``: LLaVA-7B's
width (4096, 32 heads, FFN 11008, 576 image tokens, ViT-L's width) with few random layers; no streams, but one fixed
mask per background share f, and every row's hits and misses made on purpose. There the speed-up of an L2 hit is set
against the ideal, the ratio of floating point operations (section 5.1 of the reference, for the layers that run)::

    F(n, p) = layers * (2 n (4 d^2 + 3 d ffn) + 4 d (n p + n^2 / 2))    n new tokens after p stored ones
    ideal   = F(all tokens, 0) / F(new tokens, prefix tokens)

and against the token ratio S(f) = (S + N + T) / (N (1 - f) + T + 4). Ratios are medians over the turns of the ratio
within a turn, by wall clock and by processor clock (a busy machine disturbs the second one less).

``--detector`` says where a miss's regions come from. ``rtdetr`` runs RT-DETR with random weights for its time only
(part "detect" of a row); the regions are the given boxes. ``--batch 1 4 16`` measures, instead of the above, L2 hits of
one entry in one padded pass after its expanded keys and values, against one unmodified batch of the same questions.

Examples: ``python benchmarks/ttft.py`` (about 2 minutes on one idle core); ``python benchmarks/ttft.py --width 7b``
(4 GB, about 10 minutes on one idle core); ``--quick`` for a smoke test of either.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from stream_parts import streams
from tqdm import tqdm
from ttft_batches import batch_table, tiny_batches, wide_batches
from ttft_detectors import DETECTORS, RTDETR, partitioner
from ttft_report import Request, draw_chart, print_table, table, whole_streams
from ttft_ways import FULL, L1_ONLY, NO_CACHE, ExactImage, FirstK, Pruned, Split, Unmodified, Way, request
from ttft_wide import CASES, Case, speed_ups, wide_model, wide_requests

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings
from flmm_detseg.datasets.tinyworld.streams import ENCODINGS, STREAM_KINDS
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "cache" / "tiny_stream_screens.py"


def tiny_model(arguments: argparse.Namespace) -> CachedLMM:
    """A config's model; its own partitioner unless another detector is asked for."""
    model = stream_from_config(
        arguments.config, arguments.checkpoint, untrained=arguments.checkpoint is None
    )[0].model
    if arguments.detector is not None:
        dilate = model.partitioner.dilate
        model.partitioner = partitioner(arguments.detector, dilate=dilate, small=arguments.quick)
    return model


def tiny_requests(
    model: CachedLMM, num_items: int, encoding: str = "png"
) -> tuple[list[Request], dict[str, Any]]:
    """All ways on the streams of TinyWorld, whose frames are files of an encoding."""
    settings = CacheSettings(min_tiles=20)
    cache = BackgroundCache(settings)
    cached = Split(model, cache, FULL)
    ways: list[Way] = [
        cached,
        Split(model, BackgroundCache(replace(settings, levels=("L1",))), L1_ONLY),
        Split(model, None, NO_CACHE),
        Unmodified(model),
        Unmodified(model, drop_letterbox=True),
        ExactImage(model),
        FirstK(model),
        Pruned(model, cached),
    ]
    plan = dict.fromkeys([(kind, encoding) for kind in STREAM_KINDS], 1 / len(STREAM_KINDS))
    found: list[Request] = []
    with tqdm(total=num_items * len(ways), desc="ttft tiny") as bar:
        for items in streams(plan, num_items, 40, seed=1):
            for item in items:
                boxes = {"objects_xyxy": item.objects_xyxy}
                sample = Sample(item.stream, item.image, "", (), prompt=item.question, meta=boxes)
                for number, way in enumerate(ways):
                    # Partitioners remember frames by session: every way has its own.
                    session = f"{item.stream}/{number}"
                    sample.meta["session"] = session
                    case = item.kind
                    found.append(
                        request(
                            way, sample, case, len(found) // len(ways), session=session,
                            repeat=item.exact_repeat, answer=item.answer,
                        )
                    )  # fmt: skip
                    bar.update()
    stats = cache.stats()
    sizes = {"bytes": stats["bytes"]["host"], "backgrounds": stats["backgrounds"]}
    # The first items pay for what is set up once.
    return found[2 * len(ways) :], sizes


def measured_cases(arguments: argparse.Namespace) -> list[Case]:
    """The background shares asked for."""
    return [case for case in CASES if case.name in arguments.cases]


def build(arguments: argparse.Namespace) -> CachedLMM:
    """The model of either width."""
    if arguments.width == "tiny":
        return tiny_model(arguments)
    objects = partitioner(
        arguments.detector or "boxes",
        dilate=0,
        device=arguments.device,
        small=arguments.quick,
        scenes=True,
    )
    return wide_model(
        arguments.layers, arguments.vision_layers, arguments.quick, arguments.device, arguments.dtype, objects
    )


def one_by_one(arguments: argparse.Namespace, model: CachedLMM) -> dict[str, Any]:
    """All ways, a request at a time: prints tables, draws the chart."""
    extra: dict[str, Any]
    if arguments.width == "tiny":
        found, sizes = tiny_requests(model, 24 if arguments.quick else arguments.items, arguments.encoding)
        extra = {"streams": whole_streams(found), "store": sizes}
        print_table(extra["streams"])
    else:
        cases = measured_cases(arguments)
        found, sizes = wide_requests(model, cases, 1 if arguments.quick else arguments.turns)
        extra = {
            "against_ideal": {case.name: speed_ups(model, found, case) for case in cases},
            "store": sizes,
        }
        print_table([{"case": name, **row} for name, row in extra["against_ideal"].items()])
    # One token of random weights is no answer.
    rows = table(found, answers=arguments.width == "tiny")
    print_table(rows)
    out = Path(arguments.out or f"work_dirs/ttft/{arguments.width}.png")
    # Others may use this processor, too; nobody else uses the GPU.
    clock = "wall" if arguments.device == "cuda" else "processor"
    title = (
        f"Time to first token, {arguments.width} width, {arguments.device}; regions: {detector_name(model)}"
    )
    draw_chart(rows, out, title, clock)
    requests = {"requests": [asdict(done) for done in found]} if arguments.all_requests else {}
    return {**extra, "chart": str(out), "rows": rows, **requests}


def in_batches(arguments: argparse.Namespace, model: CachedLMM) -> dict[str, Any]:
    """L2 hits and the unmodified model in batches: prints the table."""
    turns = 2 if arguments.quick else arguments.turns
    if arguments.width == "tiny":
        found = tiny_batches(model, arguments.batch, turns, 8 if arguments.quick else 40)
    else:
        found = wide_batches(model, measured_cases(arguments), arguments.batch, turns)
    rows = batch_table(model, found)
    print_table(rows)
    return {"rows": rows}


def detector_name(model: CachedLMM) -> str:
    """Who says what an object is, for the reader of a table."""
    return model.partitioner.source.name


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns figures, ready for JSON."""
    load = os.getloadavg()[0]
    model = build(arguments)
    found = (in_batches if arguments.batch else one_by_one)(arguments, model)
    layers = {"layers": arguments.layers, "vision_layers": arguments.vision_layers}
    frames = {"encoding": arguments.encoding}
    return {
        "benchmark": "ttft",
        "width": arguments.width,
        "quick": arguments.quick,
        "device": torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "detector": detector_name(model),
        **(layers if arguments.width == "7b" else frames),
        **found,
    }


def positive(text: str) -> int:
    """A number of requests.

    Raises:
        ArgumentTypeError: It is below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of requests; give whole numbers from 1 on")
    return int(text)


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--config", default=str(CONFIG), help="tiny: of a model with a background cache")
    parser.add_argument("--checkpoint", help="tiny: its trained parts; without: LLaVA as it is")
    parser.add_argument("--layers", type=int, default=2, help="7b: decoder layers")
    parser.add_argument("--vision-layers", type=int, default=2, help="7b: layers of the tower that run")
    parser.add_argument("--turns", type=int, default=3, help="7b, and batches: requests per way and case")
    parser.add_argument("--items", type=int, default=320, help="tiny: frames of all streams")
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default="png",
        help="tiny: of the frames; mixed: png or jpeg at random",
    )
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        help="regions on a miss; default: tiny the config's, 7b boxes. difference: of frames; boxes: given ones; "
        f"rtdetr: given ones, and the time of {RTDETR}",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=positive,
        default=[],
        metavar="N",
        help="instead of the ways one by one: so many L2 hits of one entry in one pass, against an unmodified batch",
    )
    parser.add_argument(
        "--cases", nargs="+", default=[case.name for case in CASES], choices=[case.name for case in CASES]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="7b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="7b")
    parser.add_argument("--out", help="chart; default work_dirs/ttft/WIDTH.png")
    parser.add_argument("--all-requests", action="store_true", help="every request in the JSON line")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    return benchmark(parser.parse_args())


if __name__ == "__main__":
    run_tool(main)
