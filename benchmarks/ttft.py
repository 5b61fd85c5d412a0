"""Time to the first token: background cache (hit L2, hit L1, miss) against what one would do without it.

All ways run on the same weights and take turns on the same items: stock LLaVA; stock without letterbox patches; a
prefix cache for exactly repeated images; first-k recompute of a similar image's keys and values (MPIC-like,
approximate, so its answers are compared with stock's). A time has everything in it: resizing, matching, the source of
regions, vision, language model, copies of keys and values, storing, sampling.

``--width tiny``: the tiny LLaVA on all streams of TinyWorld, also where the cache loses. ``--width 7b``: LLaVA-7B's
width (4096, 32 heads, FFN 11008, 576 image tokens, ViT-L's width) with few random layers; no streams, but one fixed
mask per background share f, and every row's hits and misses made on purpose. There the speed-up of an L2 hit is set
against the ideal, the ratio of floating point operations (section 5.1 of the reference, for the layers that run)::

    F(n, p) = layers * (2 n (4 d^2 + 3 d ffn) + 4 d (n p + n^2 / 2))    n new tokens behind p stored ones
    ideal   = F(stock tokens, 0) / F(new tokens, prefix tokens)

and against the token ratio S(f) = (S + N + T) / (N (1 - f) + T + 4). Ratios are medians over the turns of the ratio
within a turn, by wall clock and by processor clock (a busy machine disturbs the second one less).

Examples: ``python benchmarks/ttft.py`` (about 2 minutes on one idle core); ``python benchmarks/ttft.py --width 7b``
(4 GB, about 10 minutes on one idle core); ``--quick`` for a smoke test of either.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from stream_parts import FeaturesOnlyCache, streams
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from ttft_report import PARTS, Request, draw_chart, print_table, table, whole_streams
from ttft_ways import FULL, L1_ONLY, NO_CACHE, Clocks, ExactImage, FirstK, Prompted, Split, Stock, Way

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, GivenRegions, Partitioner
from flmm_detseg.datasets.tinyworld.streams import STREAM_KINDS
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "cache" / "tiny_stream_screens.py"
TOKENIZER = ROOT / "data" / "models" / "tiny_llava"
QUESTION = " ".join(["is the small red star left of the large blue ring , and what is behind it ?"] * 2)


@torch.no_grad()
def request(
    way: Way, sample: Sample, case: str, turn: int, *, session: str = "", repeat: bool = False,
    answer: str | None = None, max_new_tokens: int = 12,
) -> Request:  # fmt: skip
    """Runs one request; the answer's further tokens are not in the time."""
    watch = Clocks(way.model.device)
    done: Prompted = way(sample, watch, session)
    head = way.model.model
    ends = torch.tensor(head.generation_config.eos_token_id or []).flatten().tolist()
    tokens = done.decoder.decode(
        done.last_state, done.next_position, end_ids=ends, max_new_tokens=max_new_tokens
    )
    with watch("sample"):
        ids = [next(tokens).token_id]
    first_token = watch.since_start()
    ids += [token.token_id for token in tokens]
    text = way.model.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Request(
        case, turn, done.label, repeat, _named(watch.milliseconds), _named(watch.processor), first_token,
        done.new_tokens, done.past_tokens, ids, None if answer is None else text == answer,
    )  # fmt: skip


def _named(parts: Mapping[str, float]) -> dict[str, float]:
    """Prefix and suffix of the split prompt are both work of the language model."""
    named = dict.fromkeys(PARTS, 0.0)
    for part, milliseconds in parts.items():
        named["language" if part in ("prefix", "suffix") else part] += milliseconds
    return named


def tiny_requests(config: str, checkpoint: str | None, quick: bool) -> tuple[list[Request], dict[str, Any]]:
    """All ways on the streams of TinyWorld."""
    model = stream_from_config(config, checkpoint, untrained=checkpoint is None)[0].model
    settings = CacheSettings(min_tiles=20)
    cache = BackgroundCache(settings)
    ways = [
        Split(model, cache, FULL),
        Split(model, FeaturesOnlyCache(settings), L1_ONLY),
        Split(model, None, NO_CACHE),
        Stock(model),
        Stock(model, drop_letterbox=True),
        ExactImage(model),
        FirstK(model),
    ]
    num_items = 24 if quick else 320
    plan = dict.fromkeys([(kind, "png") for kind in STREAM_KINDS], 1 / len(STREAM_KINDS))
    found: list[Request] = []
    with tqdm(total=num_items * len(ways), desc="ttft tiny") as bar:
        for items in streams(plan, num_items, 40, seed=1):
            for item in items:
                sample = Sample(item.stream, item.image, "", (), prompt=item.question)
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


def wide_model(layers: int, vision_layers: int, quick: bool, device: str, dtype: str) -> CachedLMM:
    """LLaVA-7B's width, random weights."""
    text = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, image_size=336)
    if quick:
        text = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, image_size=336)
    config = LlavaConfig(
        # The last layer of the tower is never read.
        vision_config=CLIPVisionConfig(**vision, num_hidden_layers=vision_layers + 1, patch_size=14),
        text_config=LlamaConfig(
            **text, num_hidden_layers=layers, vocab_size=407, max_position_embeddings=2048
        ),
        image_token_index=4,
    )
    torch.manual_seed(0)
    with torch.device(device):
        lmm = LlavaAdapter.from_config(config, tokenizer=str(TOKENIZER), dtype=dtype)
    return CachedLMM(lmm, Partitioner(GivenRegions("meta"), dilate=0)).to(device).eval()


@dataclass(frozen=True)
class Case:
    """One mask at 336 pixels: share f of all 576 tiles is background, letterbox included."""

    name: str
    f: float
    width: int = 336

    @property
    def boxes(self) -> list[list[int]]:
        """Objects: so many tiles, row by row from the top."""
        cols = self.width // 14
        rows, rest = divmod(round((1 - self.f) * 576), cols)
        return [[0, 0, self.width, 14 * rows], [0, 14 * rows, 14 * rest, 14 * (rows + 1)]]

    def sample(self, wallpaper: int, content: int) -> Sample:
        """A wallpaper with something in front of it, both by number."""
        image = np.random.default_rng([0, wallpaper]).integers(0, 256, (336, self.width, 3), dtype=np.uint8)
        fresh = np.random.default_rng([1, content]).integers(0, 256, image.shape, dtype=np.uint8)
        for x0, y0, x1, y1 in self.boxes:
            image[y0:y1, x0:x1] = fresh[y0:y1, x0:x1]
        return Sample(self.name, image, "", (), prompt=QUESTION, meta={"objects_xyxy": self.boxes})


CASES = (Case("f=0.5", 0.5), Case("f=0.8", 0.8), Case("f=0.9", 0.9), Case("portrait f=0.8", 0.8, width=196))


def wide_requests(
    model: CachedLMM, cases: list[Case], turns: int
) -> tuple[list[Request], dict[str, dict[str, Any]]]:
    """All ways at the model's width; every request of a turn costs what its row says, whatever came before."""
    settings = CacheSettings(min_tiles=20, admission="always", max_object_share=1.0)
    found, sizes = [], {}
    with tqdm(
        total=sum(10 if case.width < 336 else 9 for case in cases) * turns, desc="ttft 7b width"
    ) as bar:
        for case in cases:
            cache = BackgroundCache(settings)
            hit_l2, hit_l1 = Split(model, cache, FULL), Split(model, FeaturesOnlyCache(settings), L1_ONLY)
            exact, first_k = ExactImage(model), FirstK(model, min_equal=0.0)
            # Everything that a hit needs is there.
            for way in (hit_l2, hit_l1, exact, first_k):
                request(way, case.sample(0, 0), case.name, -1, max_new_tokens=1)
            for turn in range(turns):
                fresh = case.sample(0, turn + 1)
                other = case.sample(1 + turn, 0)
                jobs: list[tuple[Way, Sample]] = [
                    (Stock(model), fresh),
                    (hit_l2, fresh),
                    (hit_l1, fresh),
                    (Split(model, BackgroundCache(settings), FULL), other),
                    (Split(model, None, NO_CACHE), fresh),
                    (exact, case.sample(0, 0)),
                    (ExactImage(model), other),
                    (first_k, fresh),
                    (FirstK(model), other),
                ]
                if case.width < 336:
                    jobs.append((Stock(model, drop_letterbox=True), fresh))
                for way, sample in jobs:
                    done = request(way, sample, case.name, turn, max_new_tokens=1)
                    found.append(done)
                    bar.set_postfix_str(f"{case.name} {done.label} {done.first_token / 1e3:.2f} s")
                    bar.update()
            stats = cache.stats()
            sizes[case.name] = {"bytes": stats["bytes"]["host"], "backgrounds": stats["backgrounds"]}
    return found, sizes


def language_flops(model: CachedLMM, new: int, past: int) -> float:
    """F(n, p) of the module's docstring."""
    text = model.model.config.text_config
    d, ffn = text.hidden_size, text.intermediate_size
    return text.num_hidden_layers * (
        2 * new * (4 * d * d + 3 * d * ffn) + 4 * d * (new * past + new * new / 2)
    )


def speed_ups(model: CachedLMM, found: list[Request], case: Case) -> dict[str, Any]:
    """An L2 hit against stock, beside the ideal."""
    mine = {(done.turn, done.label): done for done in found if done.case == case.name}
    pairs = [(done, mine[turn, "hit L2"]) for (turn, label), done in mine.items() if label == "stock"]
    stock, hit = pairs[0]
    ideal = language_flops(model, stock.new_tokens, 0) / language_flops(
        model, hit.new_tokens, hit.past_tokens
    )
    num_text = stock.new_tokens - 576
    tokens = stock.new_tokens / (576 * (1 - case.f) + num_text + 4)
    wall = median(a.wall["language"] / b.wall["language"] for a, b in pairs)
    processor = median(a.processor["language"] / b.processor["language"] for a, b in pairs)
    return {
        "f": case.f,
        "stock_tokens": stock.new_tokens,
        "new_tokens": hit.new_tokens,
        "ideal_prefill": round(ideal, 3),
        "ideal_tokens": round(tokens, 3),
        "prefill_wall": round(wall, 3),
        "prefill_processor": round(processor, 3),
        "share_of_ideal_wall": round(wall / ideal, 3),
        "share_of_ideal_processor": round(processor / ideal, 3),
        "ttft_wall": round(median(a.first_token / b.first_token for a, b in pairs), 3),
        "ttft_processor": round(
            median(sum(a.processor.values()) / sum(b.processor.values()) for a, b in pairs), 3
        ),
    }


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints tables, draws the chart; returns figures, ready for JSON."""
    load = os.getloadavg()[0]
    extra: dict[str, Any]
    if arguments.width == "tiny":
        found, sizes = tiny_requests(arguments.config, arguments.checkpoint, arguments.quick)
        extra = {"streams": whole_streams(found), "store": sizes}
        print_table(extra["streams"])
    else:
        model = wide_model(
            arguments.layers, arguments.vision_layers, arguments.quick, arguments.device, arguments.dtype
        )
        cases = [case for case in CASES if case.name in arguments.cases]
        found, sizes = wide_requests(model, cases, 1 if arguments.quick else arguments.turns)
        extra = {
            "layers": arguments.layers,
            "vision_layers": arguments.vision_layers,
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
    draw_chart(rows, out, f"Time to first token, {arguments.width} width, {arguments.device}", clock)
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
        "chart": str(out),
        **extra,
        "rows": rows,
        **({"requests": [asdict(done) for done in found]} if arguments.all_requests else {}),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--config", default=str(CONFIG), help="tiny: of a model with a background cache")
    parser.add_argument("--checkpoint", help="tiny: its trained parts; without: LLaVA as it is")
    parser.add_argument("--layers", type=int, default=2, help="7b: decoder layers")
    parser.add_argument("--vision-layers", type=int, default=2, help="7b: layers of the tower that run")
    parser.add_argument("--turns", type=int, default=3, help="7b: requests per way and case")
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
