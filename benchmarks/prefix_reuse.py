"""What a shared image prefix saves: several expressions about one image, one by one, as a batch, and packed.

An adapter of LLaVA-7B's text width (2 of its layers, small tower) reads E expressions of one image. Three
ways, taking
turns: a call per expression; one padded batch that repeats the prefix; one row with the prefix once.

Example: ``python benchmarks/prefix_reuse.py`` (about 2 minutes on 2 cores, 2 GB); ``--quick`` for a smoke
test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.structures import CaptureSpec, GridLevel, ImageInputs, LMMInputs, PatchGrid
from flmm_detseg.utils.cli import run_tool

PROMPT_TOKENS, ANSWER_TOKENS, PHRASE_TOKENS = 20, 12, 5


def build_adapter(quick: bool) -> LlavaAdapter:
    """A LLaVA with 576 image tokens (quick: 16), random weights."""
    text = (
        dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
        if quick
        else dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56 if quick else 336,
            patch_size=14,
        ),
        text_config=LlamaConfig(**text, num_hidden_layers=2, vocab_size=1000),
        image_token_index=999,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if quick else torch.bfloat16)
    adapter = LlavaAdapter.from_config(config, dtype="float32" if quick else "bfloat16")
    torch.set_default_dtype(torch.float32)
    return adapter


def make_inputs(adapter: LlavaAdapter, count: int) -> list[LMMInputs]:
    """Expressions of one image: equal pixels and prompt, random answers with one phrase each."""
    side = adapter.vision_grid[0] * adapter.patch_size
    grid = PatchGrid((side, side), (side, side), 0, 0, (side, side), (GridLevel(side // 14, side // 14),))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, side, side, generator=generator)
    prompt = torch.randint(900, (PROMPT_TOKENS,), generator=generator)
    prefix = torch.cat([prompt[:4], torch.full((grid.num_tokens,), 999), prompt[4:]])
    inputs = []
    for index in range(count):
        ids = torch.cat([prefix, torch.randint(900, (ANSWER_TOKENS,), generator=generator)])
        phrase = torch.zeros(1, len(ids), dtype=torch.bool)
        phrase[0, len(prefix) + 2 : len(prefix) + 2 + PHRASE_TOKENS] = True
        labels = ids.masked_fill(torch.arange(len(ids)) < len(prefix), -100)
        inputs.append(
            LMMInputs(
                ids,
                phrase,
                labels,
                ids == 999,
                len(prefix),
                (ImageInputs(pixels, grid),),
                f"expression {index}",
            )
        )
    return inputs


def benchmark(expressions: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Runs the three ways.

    Args:
        expressions: E.
        repeats: Timed runs of each way.
        quick: Small model: checks that the script works, its figures mean nothing.

    Returns:
        Figures, ready for JSON.
    """
    adapter = build_adapter(quick)
    inputs = make_inputs(adapter, expressions)
    capture = CaptureSpec(attention=True, hidden="all")
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: [adapter.encode([item], capture).attention[0] for item in inputs],
        "batch": lambda: adapter.encode(inputs, capture).attention,
        "packed": lambda: adapter.encode(inputs, capture, ["image"] * expressions).attention,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results = {}
    with tqdm(total=len(ways) * (repeats + 1), desc="prefix reuse") as bar:
        for turn in range(repeats + 1):
            for way, call in ways.items():
                start = time.perf_counter()
                results[way] = call()
                # The first turn warms up.
                seconds[way] += [time.perf_counter() - start] if turn else []
                bar.update()
    median = {way: statistics.median(values) for way, values in seconds.items()}
    pairs = zip(results["packed"], results["loop"], strict=True)
    return {
        "benchmark": "prefix_reuse",
        "device": f"cpu, {torch.get_num_threads()} threads",
        "expressions": expressions,
        "prefix_tokens": inputs[0].prefix_length,
        "answer_tokens": ANSWER_TOKENS,
        "repeats": repeats,
        "seconds": {way: round(value, 4) for way, value in median.items()},
        "speedup_packed_vs_loop": round(median["loop"] / median["packed"], 3),
        "speedup_packed_vs_batch": round(median["batch"] / median["packed"], 3),
        "max_abs_difference": max(float((packed - alone).abs().max()) for packed, alone in pairs),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--expressions", type=int, default=8, help="expressions about the image")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each way (median is taken)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    arguments = parser.parse_args()
    return benchmark(max(1, arguments.expressions), max(1, arguments.repeats), arguments.quick)


if __name__ == "__main__":
    run_tool(main)
