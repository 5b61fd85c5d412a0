"""Time that every request waits for the fingerprints of its model: is it still the model that filled the cache?

Timed is ``Fingerprints.namespace`` of a LLaVA with as many modules and tensors as LLaVA-1.5-7B, once its weights have
been read. Not real: the weights are random and narrow (time depends on how many modules and tensors there are, not on
their sizes), and no question is asked. "changed" is the time after one attribute of a module was replaced. The last
line is JSON; exit code 2 when even the fastest call exceeds the limit (other
programs on the machine make the median longer).

Example: ``python benchmarks/cache_guard.py`` (about 20 s on 1 core, 1 GB); ``--layers 2`` for a smoke test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from flmm_detseg.cache import CachedLMM
from flmm_detseg.cache.regions.sources import NoRegions, Partitioner
from flmm_detseg.datasets.tinyworld.word_list import vocabulary
from flmm_detseg.errors import RunError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.pretrain.tiny_llava import build_tokenizer
from flmm_detseg.utils.cli import run_tool


def build_model(num_layers: int, device: str) -> CachedLMM:
    """A narrow LLaVA.

    Args:
        num_layers: Decoder layers; the tower has 3 for every 4 of them, as LLaVA-1.5-7B with its 24 and 32.
        device: Where it lies.
    """
    tokenizer = build_tokenizer(vocabulary())
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **sizes, num_hidden_layers=max(2, 3 * num_layers // 4), image_size=56, patch_size=14
        ),
        text_config=LlamaConfig(**sizes, num_hidden_layers=num_layers, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    lmm = LlavaAdapter.from_config(config, tokenizer=tokenizer)
    return CachedLMM(lmm, Partitioner(NoRegions())).eval().to(device)


def milliseconds(model: CachedLMM, count: int, changed: bool) -> list[float]:
    """Times of so many calls.

    Args:
        model: Its weights were read.
        count: Calls.
        changed: Replace an attribute before each of them.
    """
    norm = model.model.model.language_model.norm
    times = []
    for turn in range(count):
        if changed:
            norm.variance_epsilon = 1e-5 + 1e-6 * (turn % 2)
        start = time.perf_counter()
        model.fingerprints.namespace("tenant")
        times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32, help="decoder layers")
    parser.add_argument("--calls", type=int, default=200, help="timed calls")
    parser.add_argument("--device", default="cpu", help="where the model lies")
    parser.add_argument(
        "--limit-ms", type=float, default=6.0, help="largest time of the fastest call that is right"
    )
    arguments = parser.parse_args()
    model = build_model(arguments.layers, arguments.device)
    start = time.perf_counter()
    model.fingerprints.namespace("tenant")
    first = time.perf_counter() - start
    same = milliseconds(model, arguments.calls, changed=False)
    changed = milliseconds(model, arguments.calls, changed=True)
    inner = model.model.model
    figures = {
        "benchmark": "cache_guard",
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "modules": sum(1 for _ in inner.modules()),
        "tensors": len([*inner.parameters(), *inner.buffers()]),
        "weights": "random, narrow",
        "limit_ms": arguments.limit_ms,
        "first_ms": round(1e3 * first, 2),
        "median_ms": round(statistics.median(same), 3),
        "smallest_ms": round(min(same), 3),
        "changed_ms": round(statistics.median(changed), 3),
    }
    if figures["smallest_ms"] > arguments.limit_ms:
        print(json.dumps(figures))
        raise RunError(f"naming takes {figures['smallest_ms']} ms, more than {arguments.limit_ms} ms")
    return figures


if __name__ == "__main__":
    run_tool(main)
