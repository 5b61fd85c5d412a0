"""What shared rows save in training: a step on several questions per image, each image read once or once a question.

Two adapters of one config family in one run, both ways alternately: the tiny cached LLaVA with LoRA (step 5 of
its training), and the unmodified one with the same LoRA. Needs no data sets: scenes of TinyWorld are drawn here.

Example: ``python benchmarks/packed_questions.py`` (half a minute on one core); ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld import make_questions, make_scene
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.from_config import read_config
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"cached": "configs/cache/tiny_cached_lora.py", "stock": "configs/cache/tiny_stock_lora.py"}


def make_samples(images: int, per_image: int) -> list[Sample]:
    """Questions of ordinary scenes, those of an image one after the other."""
    samples: list[Sample] = []
    index = 0
    while len(samples) < images * per_image:
        scene = make_scene(0, index, "val", (112, 112))
        questions = make_questions(scene, 0, per_kind=3)[:per_image]
        index += 1
        if len(questions) < per_image:
            continue
        samples += [
            Sample(
                record_id=f"scene {index}/{number}",
                image=scene.image,
                text=question.answer,
                phrases=(),
                prompt=question.text,
                image_id=f"scene {index}",
                task="vqa",
                meta={},
            )
            for number, question in enumerate(questions)
        ]
    return samples


def step(
    model: GroundingLMM, samples: list[Sample], shared: bool
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """One forward and backward pass: seconds, loss, gradients."""
    adapter = getattr(model.lmm, "lmm", model.lmm)
    adapter.share_prefix = shared
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss, _ = model.parse_losses(model.loss(samples))
    loss.backward()
    seconds = time.perf_counter() - start
    return (
        seconds,
        float(loss.detach()),
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    )


def compare(name: str, samples: list[Sample], repeats: int, bar: tqdm) -> dict[str, Any]:
    """Both ways on one model.

    Args:
        name: Key of :data:`CONFIGS`.
        samples: The batch; samples of an image have the same objects, so that both ways compute the same.
        repeats: Timed steps of each way.
        bar: Moved on by every step.
    """
    config = read_config(ROOT / CONFIGS[name])
    wrapped = config.model.lmm.lmm if name == "cached" else config.model.lmm
    wrapped.pretrained = str(ROOT / wrapped.pretrained)
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    if name == "cached":
        for sample in samples:
            sample.meta["objects_xyxy"] = [[20, 20, 60, 70]]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    last: dict[bool, tuple[float, dict[str, torch.Tensor]]] = {}
    for turn in range(repeats + 1):
        for shared in (False, True):
            took, *last[shared] = step(model, samples, shared)
            # The first turn warms up.
            seconds[shared] += [took] if turn else []
            bar.update()
    (loss, gradients), (alone, others) = last[True], last[False]
    scale = max(float(gradient.abs().max()) for gradient in others.values())
    return {
        "seconds_shared": round(statistics.median(seconds[True]), 4),
        "seconds_one_row_each": round(statistics.median(seconds[False]), 4),
        "speedup": round(statistics.median(seconds[False]) / statistics.median(seconds[True]), 2),
        "loss_difference": abs(loss - alone),
        "gradient_difference": max(float((gradients[n] - others[n]).abs().max()) for n in others) / scale,
    }


def benchmark(images: int, per_image: int, repeats: int) -> dict[str, Any]:
    """Figures of both adapters, ready for JSON."""
    with tqdm(total=2 * 2 * (repeats + 1), desc="packed questions") as bar:
        figures = {name: compare(name, make_samples(images, per_image), repeats, bar) for name in CONFIGS}
    return {
        "benchmark": "packed_questions",
        "device": f"cpu, {torch.get_num_threads()} threads",
        "images": images,
        "per_image": per_image,
        "repeats": repeats,
        **figures,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="images of a step")
    parser.add_argument("--per-image", type=int, default=6, help="questions about each")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each way (median is taken)")
    parser.add_argument("--quick", action="store_true", help="one small step each: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        return benchmark(2, 2, 1)
    return benchmark(max(1, arguments.images), max(1, arguments.per_image), max(1, arguments.repeats))


if __name__ == "__main__":
    run_tool(main)
