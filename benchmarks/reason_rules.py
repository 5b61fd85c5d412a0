"""What rules without reasoning reach on TinyWorld's reasoning set: gIoU by rule and by what is held out.

The queries are drawn as `flmm-detseg data tinyworld --reason` draws them. gIoU is the mean IoU of the queries; a query
that nothing answers counts 1 if the rule names nothing, else 0. "Another query" answers with the targets of the other
queries about the same image. `--phrase-head` adds a model whose phrase head is given the whole query as a phrase.

Example: ``python benchmarks/reason_rules.py --images 500 --phrase-head data/models/tiny_heads/heads.pth``
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_detseg import Grounder
from flmm_detseg.datasets.tinyworld.reason.draw import ReasonItem, draw_items
from flmm_detseg.datasets.tinyworld.reason.rules import RULES, iou, union
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.utils.cli import run_tool

ANOTHER = "the answer to another query"
PHRASE_HEAD = "the phrase head, given the query"


def scores(items: list[ReasonItem]) -> dict[str, list[float]]:
    """IoU of every item by rule; of :data:`ANOTHER` the mean over the other queries about its image."""
    found: dict[str, list[float]] = defaultdict(list)
    about: dict[int, list[ReasonItem]] = defaultdict(list)
    for item in items:
        about[item.image].append(item)
    for item in items:
        wanted = union(item.scene, item.query.targets)
        for name, rule in RULES.items():
            found[name].append(iou(union(item.scene, rule(item.scene, item.texts[0])), wanted))
        others = [union(other.scene, other.query.targets) for other in about[item.image] if other is not item]
        found[ANOTHER].append(sum(iou(mask, wanted) for mask in others) / len(others))
    return found


def phrase_head_scores(items: list[ReasonItem], grounder: Grounder) -> list[float]:
    """IoU of every item, of the mask that a phrase head draws for the query's words."""
    found = []
    for item in tqdm(items, desc=PHRASE_HEAD):
        text = item.texts[0]
        result = grounder.ground(item.scene.image, text, spans=[(0, len(text))])
        found.append(iou(np.asarray(result.masks[0]), union(item.scene, item.query.targets)))
    return found


def main() -> dict[str, Any]:
    """Draws, scores, prints; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500, help="of the split (default %(default)s)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phrase-head", metavar="CHECKPOINT", help="of a model that grounds phrases")
    parser.add_argument(
        "--config",
        default="configs/tiny/frozen_tiny_llava_refcoco_png.py",
        help="its config (default %(default)s)",
    )
    args = parser.parse_args()
    spec = ReasonSpec(args.images, args.images, args.images, args.seed)
    items = list(draw_items(spec, args.split))
    groups = {
        "all": [True] * len(items),
        "with targets": [item.query.absent is None for item in items],
        "wording": [item.held_out == "wording" for item in items],
        "combination": [item.held_out == "combination" for item in items],
    }
    figures: dict[str, dict[str, float]] = {}
    found = scores(items)
    if args.phrase_head:
        grounder = Grounder.from_config(args.config, args.phrase_head)
        found[PHRASE_HEAD] = phrase_head_scores(items, grounder)
    for name, values in found.items():
        figures[name] = {}
        for group, members in groups.items():
            chosen = [value for value, member in zip(values, members, strict=True) if member]
            if chosen:
                figures[name][group] = round(sum(chosen) / len(chosen), 4)
        print(" ".join(f"{group} {value:.3f}" for group, value in figures[name].items()), "", name)
    return {"figures": figures, "num_queries": len(items)}


if __name__ == "__main__":
    run_tool(main)
