"""How well a grounder's SAM outlines what is pointed at, as it was published and after its training for phrases.

Every object of TinyWorld scenes of the split ``val`` (seed 1, which no training has used) is pointed at in four ways:
one click at its deepest point, three clicks in it, a stroke through it, its box. Its mask is compared with what
``Outliner`` gives.

Example: ``python benchmarks/outlines.py`` (two minutes of a free core); ``--scenes 4`` for a smoke test.
"""

from __future__ import annotations

import argparse
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from flmm_detseg import Grounder
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.inference import Outliner
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS


def prompts(
    mask: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """The four ways to point at an object."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[
        1:-1, 1:-1
    ]
    inside = np.argwhere(mask)
    deepest = np.unravel_index(int(depth.argmax()), depth.shape)
    clicks = inside[rng.choice(len(inside), 3)]
    # A stroke: the object's middle, as broad as a third of it.
    stroke = depth > 2 * depth.max() / 3
    return {
        "one click": {"points": [(float(deepest[1]), float(deepest[0]))]},
        "three clicks": {"points": [(float(x), float(y)) for y, x in clicks]},
        "scribble": {"scribble": stroke},
        "box": {"box": box},
    }


def measure(grounder: Grounder, scenes: int, seed: int) -> dict[str, Any]:
    """Mean IoU by way of pointing and by decoder."""
    (refiner,) = (head.refiner for head in grounder.model.heads.values() if head.refiner is not None)
    kept, ious = refiner.box_parts, {}
    for index in tqdm(range(scenes), desc="scenes"):
        scene = make_scene(seed, index, "val")
        rng = np.random.default_rng(index)
        outliner = Outliner(grounder, scene.image)
        for thing in scene.objects:
            for way, prompt in prompts(thing.mask, thing.box_xyxy, rng).items():
                for decoder, parts in (("published", kept), ("trained for phrases", None)):
                    refiner.box_parts = parts
                    found = outliner.outline(**prompt).mask
                    iou = (found & thing.mask).sum() / (found | thing.mask).sum()
                    ious.setdefault(decoder, {}).setdefault(way, []).append(float(iou))
    refiner.box_parts = kept
    return {
        decoder: {
            way: {
                "mean_iou": round(float(np.mean(values)), 3),
                "standard_error": round(float(np.std(values) / np.sqrt(len(values))), 3),
                "objects": len(values),
            }
            for way, values in ways.items()
        }
        for decoder, ways in ious.items()
    }


def main() -> dict[str, Any]:
    """Measures and returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=TINY_CONFIG, help="a model with a refiner")
    parser.add_argument("--checkpoint", default=TINY_HEADS)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the world")
    arguments = parser.parse_args()
    grounder = Grounder.from_config(arguments.config, arguments.checkpoint)
    return measure(grounder, arguments.scenes, arguments.seed)


if __name__ == "__main__":
    run_tool(main)
