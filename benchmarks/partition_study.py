"""How far must objects be widened? Patches that change outside of objects, for images, encodings and dilations.

python benchmarks/partition_study.py

A background is reused only when all of its patches are equal, so what a change in a box does beside the box decides
whether there is a hit. Synthetic screens go through LLaVA-1.5's processor (336 pixels, patches of 14), TinyWorld's
streams through the tiny one's (112, 8). Writes pictures of partitions, too. A dilation that geometry says is enough and
is not ends the run with an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

# isort: split
from partition_cases import (
    ENCODINGS,
    PNG,
    SIZES,
    Encoding,
    Pair,
    View,
    draw_edit,
    draw_screen,
    make_processor,
    needed_dilation,
    scrolled_screen,
    stream_pairs,
    view,
)

from flmm_detseg.cache.regions.partition import box_tiles, letterbox_tiles, partition_tiles
from flmm_detseg.datasets.tinyworld.streams import make_stream
from flmm_detseg.errors import DataError
from flmm_detseg.lmms import LlavaProcessor
from flmm_detseg.structures.partition import BG, OBJ, PAD
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.visualization import canvas

DILATIONS = (0, 1, 2, 3)
SCROLL_STEP, TOLERANCE = 7, 4
_SHADES = {BG: (40, 90, 200), OBJ: (230, 120, 20), PAD: (90, 90, 90)}
_STREAM_CELLS = [
    (kind, encoding) for kind in ("camera", "slides", "screen") for encoding in ("png", "jpeg", "mixed")
]


def changed_outside(before: View, after: View, boxes_xyxy: np.ndarray, dilate: int) -> tuple[int, float]:
    """What a cache would meet.

    Args:
        before: The image whose background is stored.
        after: The image that asks for it.
        boxes_xyxy: What changed, original pixels.
        dilate: Patches by which the boxes' patches are widened.

    Returns:
        Background patches that differ, and the share of live patches that are objects.
    """
    group = partition_tiles(before.grid, box_tiles(before.grid, boxes_xyxy), dilate=dilate).group
    differ = (before.tiles != after.tiles).any(1)
    live = group != PAD
    return int((differ & (group != OBJ)).sum()), float((group == OBJ).sum() / live.sum())


def table(pairs: Iterable[tuple[View, View, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Figures by dilation: mean and most patches that changed outside, share of pairs with none, share of objects."""
    found: dict[int, list[tuple[int, float]]] = {dilate: [] for dilate in DILATIONS}
    for before, after, boxes in pairs:
        for dilate in DILATIONS:
            found[dilate].append(changed_outside(before, after, boxes, dilate))
    return {
        str(dilate): {
            "pairs": len(cells),
            "changed_mean": round(float(np.mean([count for count, _ in cells])), 2),
            "changed_max": max(count for count, _ in cells),
            "exact_share": round(float(np.mean([count == 0 for count, _ in cells])), 3),
            "object_share": round(float(np.mean([share for _, share in cells])), 3),
        }
        for dilate, cells in found.items()
    }


def edits(processor: LlavaProcessor, size: tuple[int, int], num: int, seed: int) -> dict[str, Any]:
    """Screens of a size with one edit each, through every encoding."""
    rng = np.random.default_rng(seed)
    pairs = [draw_edit(rng, draw_screen(rng, size)) for _ in range(num)]
    found: dict[str, Any] = {}
    for encoding in ENCODINGS:
        views = [_views(processor, encoding, pair) for pair in pairs]
        needed = needed_dilation(views[0][0].grid, encoding.reach)
        found[encoding.name] = {"needed_by_geometry": needed, "dilations": table(views)}
    return found


def _views(processor: LlavaProcessor, encoding: Encoding, pair: Pair) -> tuple[View, View, np.ndarray]:
    before, after = (view(processor, encoding(image)) for image in (pair.before, pair.after))
    return before, after, pair.boxes_xyxy


def problems(found: dict[str, dict[str, Any]]) -> list[str]:
    """Where a change shows outside although geometry says that it cannot."""
    wrong = []
    for size, encodings in found.items():
        for name, cell in encodings.items():
            needed = cell["needed_by_geometry"]
            if needed <= max(DILATIONS) and cell["dilations"][str(needed)]["changed_max"]:
                count = cell["dilations"][str(needed)]["changed_max"]
                wrong.append(f"{size}, {name}: {count} patches changed outside at dilation {needed}")
    return wrong


def other_cases(processor: LlavaProcessor, num: int, seed: int) -> dict[str, dict[str, float]]:
    """Shares of live patches that stay equal, or within the tolerance of L3: scrolled, or encoded another way."""
    rng = np.random.default_rng(seed)
    size = SIZES["phone 1170x2532"]
    screens = [scrolled_screen(rng, size, SCROLL_STEP) for _ in range(num)]
    jpeg = Encoding("jpeg 90", 90)
    cases = {
        f"scrolled {SCROLL_STEP} px": [(PNG(first), PNG(second)) for first, second in screens],
        "png against jpeg 90": [(PNG(first), jpeg(first)) for first, _ in screens],
        "jpeg 90 against jpeg 85": [(jpeg(first), Encoding("", 85)(first)) for first, _ in screens],
    }
    found = {}
    for name, images in cases.items():
        equal, near = [], []
        for pair in images:
            first, second = (view(processor, image) for image in pair)
            live = ~letterbox_tiles(first.grid).ravel()
            worst = np.abs(first.tiles.astype(np.int16) - second.tiles).max(1)[live]
            equal.append((worst == 0).mean())
            near.append((worst <= TOLERANCE).mean())
        found[name] = {
            "equal_share": round(float(np.mean(equal)), 3),
            f"within_{TOLERANCE}_share": round(float(np.mean(near)), 3),
        }
    return found


def streams(num_streams: int, num_frames: int, seed: int) -> dict[str, Any]:
    """TinyWorld's streams through the tiny LLaVA's processor."""
    processor = make_processor(112, 8)
    found = {}
    for kind, encoding in _STREAM_CELLS:
        pairs = stream_pairs(kind, encoding, seed, num_streams, num_frames)
        found[f"{kind}/{encoding}"] = table(
            (view(processor, pair.before), view(processor, pair.after), pair.boxes_xyxy) for pair in pairs
        )
    return found


def picture(kind: str, seed: int, num_frames: int = 3) -> np.ndarray:
    """A row per frame: the frame, then its groups at each dilation; RGB uint8."""
    processor = make_processor(112, 8)
    rows = []
    for item in make_stream(kind, seed, 0, 3 * num_frames)[::3]:
        seen = view(processor, item.image)
        boxes = np.array(item.objects_xyxy)
        tiles = [("frame", None)] + [(f"dilation {dilate}", dilate) for dilate in DILATIONS[:3]]
        cells = []
        for title, dilate in tiles:
            large = seen.pixels.repeat(2, 0).repeat(2, 1).astype(np.float32)
            if dilate is not None:
                group = partition_tiles(seen.grid, box_tiles(seen.grid, boxes), dilate=dilate).group
                shown = group.reshape(seen.grid.levels[0].rows, -1).repeat(16, 0).repeat(16, 1)
                for value, colour in _SHADES.items():
                    canvas.blend(large, shown == value, colour, 0.45)
            cells.append(canvas.with_title(large.round().astype(np.uint8), title))
        rows.append(canvas.hstack(cells))
    return canvas.with_title(canvas.vstack(rows), f"{kind}: background blue, objects orange, letterbox grey")


def print_tables(figures: dict[str, Any]) -> None:
    """Markdown, for people: patches changed outside (mean / most), share of exact pairs, share of objects."""
    head = [f"dilation {dilate}" for dilate in DILATIONS]
    print("\n| images | " + " | ".join(head) + " |\n|" + "---|" * (len(head) + 1))
    rows = {
        f"{size}, {name}": cell["dilations"]
        for size, cells in figures["edits"].items()
        for name, cell in cells.items()
    }
    for name, cells in (rows | figures["streams"]).items():
        texts = [
            f"{cell['changed_mean']:g} / {cell['changed_max']}, {cell['exact_share']:.2f}, {cell['object_share']:.2f}"
            for cell in cells.values()
        ]
        print(f"| {name} | " + " | ".join(texts) + " |")
    for name, cell in figures["others"].items():
        print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in cell.items()))


def benchmark(num: int, num_streams: int, num_frames: int, seed: int, out: Path) -> dict[str, Any]:
    """The whole study.

    Args:
        num: Synthetic screens of every size.
        num_streams: Streams of every kind and encoding.
        num_frames: Frames of a stream.
        seed: Of everything drawn.
        out: Folder of the pictures.

    Raises:
        DataError: A dilation that should be enough is not.
    """
    processor = make_processor(336, 14)
    found: dict[str, Any] = {}
    with tqdm(total=len(SIZES) + 3, desc="partition study") as bar:
        for name, size in SIZES.items():
            bar.set_postfix_str(name)
            found[name] = edits(processor, size, num, seed)
            bar.update()
        others = other_cases(processor, max(1, num // 4), seed)
        bar.update()
        of_streams = streams(num_streams, num_frames, seed)
        bar.update()
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for kind in ("screen", "camera", "slides", "scroll"):
            file = out / f"partition_{kind}.png"
            Image.fromarray(picture(kind, seed)).quantize(128).save(file, optimize=True)
            files.append(str(file))
        bar.update()
    figures = {
        "benchmark": "partition_study", "seed": seed, "edits": found, "streams": of_streams, "others": others,
        "pictures": files,
    }  # fmt: skip
    print_tables(figures)
    if wrong := problems(found):
        raise DataError(f"widened as far as geometry asks, objects still spill over: {'; '.join(wrong)}")
    return figures


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=int, default=12, help="synthetic screens of every size")
    parser.add_argument("--streams", type=int, default=4, help="of every kind and encoding")
    parser.add_argument("--frames", type=int, default=10, help="of a stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/partition_study"), help="folder of the pictures"
    )
    args = parser.parse_args()
    return benchmark(max(1, args.screens), max(1, args.streams), max(6, args.frames), args.seed, args.out)


if __name__ == "__main__":
    run_tool(main)
