"""What SAM's image encoder costs in bfloat16 and by sdpa, and what it changes.

Time: blocks of ViT-L's width (1024, 16 heads, 1024-pixel input), one with windows and one without, random weights; the
real ViT-L has 20 and 4. Difference: the whole tiny SAM of ``data/models`` with its trained weights, masks of boxes on
random scenes of rectangles.

Example: ``python benchmarks/sam_settings.py`` (about 2 minutes on 2 cores, 3 GB); ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg.ops.masks import mask_iou
from flmm_detseg.refiners import SAMRefiner, SamSizes, build_sam
from flmm_detseg.utils.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "float32 eager": {},
    "float32 sdpa": {"attention": "sdpa"},
    "bfloat16 eager": {"dtype": "bfloat16"},
    "bfloat16 sdpa": {"dtype": "bfloat16", "attention": "sdpa"},
}
BLOCKS = {"windowed": 20, "global": 4}  # of ViT-L


def block_times(repeats: int, quick: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of a windowed and of a global block by setting (processor clock, median)."""
    sizes = SamSizes(1024, 2, 16, (1,))
    if quick:
        sizes = SamSizes(64, 2, 4, (1,), image_size=256)
    found: dict[str, dict[str, float]] = {}
    side = sizes.image_size // sizes.patch_size
    states = torch.randn(1, side, side, sizes.embed_dim, generator=torch.Generator().manual_seed(0))
    for name, settings in tqdm(SETTINGS.items(), desc="blocks"):
        torch.manual_seed(0)
        encoder = SAMRefiner(build_sam(sizes), **settings).model.image_encoder
        given = states.to(encoder.pos_embed.dtype)
        found[name] = {}
        for kind, block in zip(BLOCKS, encoder.blocks, strict=True):
            seconds = []
            with torch.inference_mode():
                for turn in range(repeats + 1):
                    start = time.process_time()
                    block(given)
                    seconds += [time.process_time() - start] if turn else []
            found[name][kind] = round(1000 * statistics.median(seconds), 1)
        found[name]["vit_l"] = round(sum(BLOCKS[kind] * found[name][kind] for kind in BLOCKS), 1)
    return found


def mask_differences(scenes: int) -> dict[str, dict[str, float]]:
    """Masks of boxes of the tiny SAM against float32 eager: mean and least IoU, largest difference of embeddings."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for _ in range(scenes):
        image = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(96, 0).repeat(128, 1)
        corners = []
        for _ in range(4):
            y, x = int(rng.integers(0, 60)), int(rng.integers(0, 90))
            height, width = (int(side) for side in rng.integers(10, 36, 2))
            image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
            corners.append([x, y, x + width, y + height])
        images.append(image)
        boxes.append(torch.tensor(corners, dtype=torch.float32))
    results = {}
    for name, settings in SETTINGS.items():
        refiner = SAMRefiner(build_sam(checkpoint=ROOT / "data" / "models" / "tiny_sam"), **settings).eval()
        with torch.inference_mode():
            embedding = refiner.encode_images(images)[0].float()
            masks = [maps > 0 for maps in refiner.masks_from_boxes(images, boxes)]
        results[name] = (embedding, masks)
    reference, expected = results["float32 eager"]
    found = {}
    for name, (embedding, masks) in results.items():
        ious = torch.cat([mask_iou(ours, theirs) for ours, theirs in zip(masks, expected, strict=True)])
        found[name] = {
            "mean_iou": round(float(ious.mean()), 4),
            "least_iou": round(float(ious.min()), 4),
            "embedding_difference": round(float((embedding - reference).norm() / reference.norm()), 7),
        }
    return found


def benchmark(repeats: int, scenes: int, quick: bool) -> dict[str, Any]:
    """Both tables.

    Returns:
        Figures, ready for JSON.
    """
    torch.set_num_threads(1)
    times = block_times(repeats, quick)
    slowest = times["float32 eager"]
    return {
        "benchmark": "sam_settings",
        "device": "cpu, 1 thread, processor clock",
        "ms": times,
        "speedup": {
            name: {kind: round(slowest[kind] / row[kind], 2) for kind in row} for name, row in times.items()
        },
        "masks_of_tiny_sam": mask_differences(scenes),
        "masks": 4 * scenes,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a block (median is taken)")
    parser.add_argument("--scenes", type=int, default=25, help="pictures with four boxes each")
    parser.add_argument("--quick", action="store_true", help="small blocks: does it run?")
    arguments = parser.parse_args()
    return benchmark(max(1, arguments.repeats), arguments.scenes, arguments.quick)


if __name__ == "__main__":
    run_tool(main)
