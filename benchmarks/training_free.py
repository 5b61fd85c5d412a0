"""Grounding without training on TinyWorld: heads chosen without masks, against the best one chosen with them.

On RefCOCO val of TinyWorld, mean IoU of the masks of

- the best 1, 3 and 10 heads of each ranking (50 phrases of training images, no masks), ranked several times, each time
  on other images: phrases of RefCOCO train, and with ``--mix`` those of a config's training mix,
- every head alone (the best one is chosen with val's own masks, so that no ranking can choose a better single head),
- the mean over all heads, which chooses nothing.

The same for a control LMM (the same tower, a random language model), and with another image's phrase.

Example: ``python benchmarks/training_free.py --control work_dirs/quickstart/control_lmm --mix
tiny/frozen_tiny_llava_refcoco_png`` after ``make quickstart``.
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
from flmm_detseg.models.from_config import read_config
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.choices import RANKING_METHODS
from flmm_detseg.utils.cli import run_tool

COUNTS = (1, 3, 10)


def ious(stacks: list[np.ndarray], channels: list[int], masks: list[np.ndarray]) -> np.ndarray:
    """IoU per sample of the mask that these channels give."""
    head = AttentionMaskHead(len(channels))
    found = np.zeros(len(masks))
    shapes = [(stack.shape, mask.shape) for stack, mask in zip(stacks, masks, strict=True)]
    for shape in set(shapes):  # images of one size together
        members = [index for index, other in enumerate(shapes) if other == shape]
        logits = head(torch.from_numpy(np.stack([stacks[index][channels] for index in members])))[:, None]
        size = shape[1]
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0].numpy() > 0
        true = np.stack([masks[index] for index in members])
        found[members] = (full & true).sum((1, 2)) / np.maximum((full | true).sum((1, 2)), 1)
    return found


def draws_of(dataset: Any, images: int, draws: int) -> list[list[Sample]]:
    """Phrases of other images for each draw, by seed 0, 1, ..."""
    orders = [np.random.default_rng(seed).permutation(len(dataset)) for seed in range(draws)]
    return [one_phrase_each((dataset[int(index)] for index in order), images) for order in orders]


def measure(name: str, data: str, images: int, limit: int, draws: int, mix: str | None) -> dict[str, Any]:
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
    sources = {"RefCOCO": train}
    if mix is not None:
        sources["mix"] = DATASETS.build(read_config(mix).train_dataloader.dataset)
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
    for source, dataset in sources.items():
        samples_by_draw = draws_of(dataset, images, draws)
        for method in RANKING_METHODS:
            rankings = [rank_heads(lmm, samples, name, method) for samples in samples_by_draw]
            for count in COUNTS:
                chosen = [[labels.index(pair) for pair in ranking.top(count)] for ranking in rankings]
                found = [float(ious(right, channels, masks).mean()) for channels in chosen]
                others = [float(ious(wrong, channels, masks).mean()) for channels in chosen]
                figures[f"{source}, {method}, {count}"] = {
                    "mIoU by draw": [round(value, 4) for value in found],
                    "mean": round(float(np.mean(found)), 4),
                    "lowest of the best head": round(min(found) / max(alone), 3),
                    "wrong phrases": round(float(np.mean(others)), 4),
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
    parser.add_argument("--draws", type=int, default=5, help="how many times heads are ranked")
    parser.add_argument("--mix", help="config of whose training data heads are ranked as well")
    parser.add_argument("--limit", type=int, default=400, help="most phrases of val (about)")
    args = parser.parse_args()
    found = {}
    for name in filter(None, (args.lmm, args.control)):
        found[name] = measure(name, args.data, args.images, args.limit, args.draws, args.mix)
        print(f"{name}:")
        for key, value in found[name].items():
            print(f"  {key:32} {value}")
    return found


if __name__ == "__main__":
    run_tool(main)
