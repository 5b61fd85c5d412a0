"""What reading attention costs: plain sdpa, sdpa with the row tap, eager with ``output_attentions``.

One language model (2 layers at the width of LLaVA-7B's, Qwen3-VL-4B's or Gemma 3 4B's) reads one sequence three
ways, which alternate. The sequence is shaped like a sample: image tokens in front, K phrases at the end. Reported per
sequence length T: median wall-clock and processor seconds, bytes of attention that the caller holds afterwards, and the
growth of the resident set at its peak (Linux only). A time ratio is the median over the turns of the ratio within a
turn, so that a machine that is busy for a while disturbs both sides.

Example: ``python benchmarks/attention_rows.py`` (about 5 minutes on 2 idle cores, 4 GB); ``--lmm gemma3`` for another
language model; ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3VLTextConfig,
    Qwen3VLTextModel,
)

from flmm_detseg.lmms.capture.row_tap import ROW_TAP, RowTap
from flmm_detseg.utils.cli import run_tool

NUM_PHRASES, TOKENS_PER_PHRASE = 8, 5
_QWEN_ROPE = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
# Per LMM: classes of its language model, and what is published of its width. Qwen3-VL and Gemma 3 share keys among
# heads; one of Gemma 3's two layers looks back 1,024 tokens.
LMMS: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "llava": (
        LlamaConfig,
        LlamaModel,
        dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32),
    ),
    "qwen3_vl": (
        Qwen3VLTextConfig,
        Qwen3VLTextModel,
        dict(
            hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
            rope_scaling=_QWEN_ROPE,
        ),
    ),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3TextModel,
        dict(
            hidden_size=2560, intermediate_size=10240, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            layer_types=["sliding_attention", "full_attention"], sliding_window=1024,
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A sequence of ``length`` tokens, ``num_image_tokens`` of them patches, after ``lead`` others."""

    length: int
    num_image_tokens: int
    lead: int = 5


def build_model(lmm: str, quick: bool, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A language model with random weights, made on the device in its dtype."""
    config_class, model_class, size = LMMS[lmm]
    if quick:
        size = {
            **size,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 8,
            "head_dim": 16,
        }
        size.setdefault("num_key_value_heads", 8)
        if "rope_scaling" in size:
            size["rope_scaling"] = {**_QWEN_ROPE, "mrope_section": [4, 2, 2]}
    config = config_class(**size, num_hidden_layers=2, vocab_size=64)
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(std=0.02)
    # Buffers have no values on the meta device: take those of a model that was made where it runs.
    for name, buffer in model_class(config).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(device))
    return model.eval().requires_grad_(False)


def make_tap(case: Case, num_layers: int, device: str) -> RowTap:
    """Taps K phrases at the end of the sequence."""
    num_rows = NUM_PHRASES * TOKENS_PER_PHRASE
    return RowTap(
        torch.arange(case.length - num_rows, case.length, device=device)[None],
        torch.arange(NUM_PHRASES, device=device).repeat_interleave(TOKENS_PER_PHRASE)[None],
        torch.arange(case.lead, case.lead + case.num_image_tokens, device=device)[None],
        NUM_PHRASES,
        heads=dict.fromkeys(range(num_layers)),
        merge="mean",
    )


def forward(model: PreTrainedModel, embeds: Tensor, case: Case, mode: str) -> list[Tensor]:
    """One pass; returns the attention tensors its caller holds."""
    model.set_attn_implementation({"sdpa": "sdpa", "rows": ROW_TAP, "eager": "eager"}[mode])
    arguments: dict[str, Any] = {
        "inputs_embeds": embeds,
        "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device),
        "use_cache": False,
    }
    if mode == "rows":
        tap = make_tap(case, len(model.layers), str(embeds.device))
        model(**arguments, row_tap=tap)
        return [tap.finish()]
    output = model(**arguments, output_attentions=mode == "eager")
    return list(output.attentions) if mode == "eager" else []


def measure_peak(call: Callable[[], list[Tensor]], device: str) -> int | None:
    """Bytes above the start that process (CPU) or GPU used at the peak; None where it cannot be read."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    try:
        # Resets the peak of the resident set.
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(
    model: PreTrainedModel, case: Case, repeats: int, device: str, bar: tqdm
) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of the three ways, interleaved so that a slow moment hits all of them."""
    modes = ("sdpa", "rows", "eager")
    embeds = torch.randn(1, case.length, model.config.hidden_size, device=device, dtype=model.dtype)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    processor: dict[str, list[float]] = {mode: [] for mode in modes}
    attention_bytes: dict[str, int] = {}
    peak: dict[str, int | None] = {}
    for mode in modes:
        kept = forward(model, embeds, case, mode)
        attention_bytes[mode] = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        del kept
        peak[mode] = measure_peak(lambda mode=mode: forward(model, embeds, case, mode), device)
        bar.update(2)
    for _ in range(repeats):
        for mode in modes:
            _synchronise(device)
            start, processor_start = time.perf_counter(), time.process_time()
            forward(model, embeds, case, mode)
            _synchronise(device)
            seconds[mode].append(time.perf_counter() - start)
            processor[mode].append(time.process_time() - processor_start)
            bar.set_postfix_str(f"T={case.length} {mode} {seconds[mode][-1]:.2f} s")
            bar.update()
    return {
        mode: {
            "seconds": round(statistics.median(seconds[mode]), 4),
            "processor_seconds": round(statistics.median(processor[mode]), 4),
            "attention_bytes": attention_bytes[mode],
            "peak_growth_bytes": peak[mode],
            "turns": {"seconds": seconds[mode], "processor_seconds": processor[mode]},
        }
        for mode in modes
    }


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def benchmark(lmm: str, repeats: int, quick: bool, device: str) -> dict[str, Any]:
    """Runs all cases.

    Args:
        lmm: Key of :data:`LMMS`.
        repeats: Timed passes per way and case.
        quick: Small model and sequences: checks that the script works, its figures mean nothing.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Figures, ready for JSON.
    """
    cases = [Case(120, 64), Case(300, 240)] if quick else [Case(700, 576), Case(2900, 2840)]
    model = build_model(lmm, quick, torch.bfloat16, device)
    with tqdm(total=len(cases) * (6 + 3 * repeats), desc="attention rows") as bar:
        results = {str(case.length): measure(model, case, repeats, device, bar) for case in cases}

    turns = {t: {mode: way.pop("turns") for mode, way in ways.items()} for t, ways in results.items()}

    def ratio(upper: str, lower: str, clock: str) -> dict[str, float]:
        """Per length the median over the turns of the ratio of two ways."""
        pairs = {t: zip(ways[upper][clock], ways[lower][clock], strict=True) for t, ways in turns.items()}
        return {t: round(statistics.median(a / b for a, b in pair), 3) for t, pair in pairs.items()}

    return {
        "benchmark": "attention_rows",
        "lmm": lmm,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "dtype": "bfloat16",
        "num_layers": 2,
        "hidden_size": model.config.hidden_size,
        "num_phrases": NUM_PHRASES,
        "repeats": repeats,
        "time_ratio_rows_vs_sdpa": ratio("rows", "sdpa", "seconds"),
        "processor_time_ratio_rows_vs_sdpa": ratio("rows", "sdpa", "processor_seconds"),
        "time_ratio_eager_vs_rows": ratio("eager", "rows", "seconds"),
        "attention_memory_ratio_eager_vs_rows": {
            t: round(ways["eager"]["attention_bytes"] / ways["rows"]["attention_bytes"], 1)
            for t, ways in results.items()
        },
        "per_length": results,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed passes per way and length (median is taken)"
    )
    parser.add_argument("--lmm", choices=tuple(LMMS), default="llava", help="whose language model")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    return benchmark(arguments.lmm, max(1, arguments.repeats), arguments.quick, arguments.device)


if __name__ == "__main__":
    run_tool(main)
