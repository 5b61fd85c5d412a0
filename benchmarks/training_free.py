"""Grounding without training on TinyWorld: heads chosen without masks, against the best one chosen with them.

On RefCOCO val of TinyWorld, mean IoU of the masks of

- the best 1, 3 and 10 heads of each ranking (50 phrases of training images, no masks),
- every head alone (the best one is chosen with val's own masks, so that no ranking can choose a better single head),
- the mean over all heads, which chooses nothing.

The same for a control LMM (the same tower, a random language model), and with another image's phrase.

Example: ``python benchmarks/training_free.py --control work_dirs/quickstart/control_lmm`` after ``make quickstart``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from flmm_detseg.datasets import RefCOCODataset
from flmm_detseg.heads import AttentionMaskHead
from flmm_detseg.inference import AttentionReader
from flmm_detseg.inference.rank_heads import attention_of, one_phrase_each, rank_heads, with_wrong_phrases
from flmm_detseg.utils.cli import run_tool

COUNTS = (1, 3, 10)


def ious(stacks: list[np.ndarray], channels: list[int], masks: list[np.ndarray]) -> np.ndarray:
    """IoU per sample of the mask that these channels give."""
    head = AttentionMaskHead(len(channels))
    found = []
    for stack, mask in zip(stacks, masks, strict=True):
        logits = head(torch.from_numpy(stack[channels])[None])
        full = (
            F.interpolate(logits[None], size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
            > 0
        )
        found.append((full & mask).sum() / max((full | mask).sum(), 1))
    return np.array(found)


def measure(name: str, data: str, images: int, limit: int) -> dict[str, Any]:
    """All figures of one LMM."""
    settings = dict(
        refs_file=f"{data}/refcoco/refs(unc).p",
        instances_file=f"{data}/refcoco/instances.json",
        image_dir=f"{data}/coco",
        sentences="first",
        layout="split",
    )
    train, val = (RefCOCODataset(**settings, split=split) for split in ("train", "val"))
    lmm = AttentionReader.from_pretrained(name).lmm
    ranked = one_phrase_each((train[index] for index in range(len(train))), images)
    step = max(1, len(val) // limit)
    samples = [val[index] for index in range(0, len(val), step)]
    masks = [sample.masks[0] for sample in samples if sample.masks is not None]
    right = attention_of(lmm, samples, 16)
    wrong = attention_of(lmm, with_wrong_phrases(samples), 16)
    labels = lmm.attention_pairs
    alone = [float(ious(right, [channel], masks).mean()) for channel in tqdm(range(len(labels)), leave=False)]
    figures: dict[str, Any] = {
        "phrases": len(samples),
        "best head, chosen with masks": [list(labels[int(np.argmax(alone))]), round(max(alone), 4)],
        "mean over all heads": round(float(ious(right, list(range(len(labels))), masks).mean()), 4),
    }
    for method in ("contrast", "localisation"):
        ranking = rank_heads(lmm, ranked, name, method)
        for count in COUNTS:
            channels = [labels.index(pair) for pair in ranking.top(count)]
            values, others = ious(right, channels, masks), ious(wrong, channels, masks)
            half = 1.96 * values.std() / len(values) ** 0.5
            figures[f"{method}, {count}"] = {
                "mIoU": round(float(values.mean()), 4),
                "interval": [round(float(values.mean() - half), 4), round(float(values.mean() + half), 4)],
                "of the best head": round(float(values.mean()) / max(alone), 3),
                "wrong phrases": round(float(others.mean()), 4),
            }
    return figures


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lmm", default="data/models/tiny_llava")
    parser.add_argument("--control", help="another LMM to measure beside it")
    parser.add_argument("--data", default="data/tinyworld")
    parser.add_argument("--images", type=int, default=50, help="images to rank heads on")
    parser.add_argument("--limit", type=int, default=400, help="most phrases of val (about)")
    args = parser.parse_args()
    found = {}
    for name in filter(None, (args.lmm, args.control)):
        found[name] = measure(name, args.data, args.images, args.limit)
        print(f"{name}:")
        for key, value in found[name].items():
            print(f"  {key:32} {value}")
    return found


if __name__ == "__main__":
    run_tool(main)
