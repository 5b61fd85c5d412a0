"""Necks, states and samples for the tests of dense heads: random vision maps, no LMM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny import one_image

from flmm_detseg.heads import VisionNeck
from flmm_detseg.structures import (
    DenseTargets,
    GridLevel,
    GroundingBatch,
    LMMInputs,
    LMMStates,
    PatchGrid,
    Sample,
)

VISION_CHANNELS, PATCH, ROWS = 12, 14, 4
LAYERS = (1, 2, 3)
SIDE = ROWS * PATCH
# LLaVA pads the squared view, LLaVA-NeXT squeezes the image into it (its fine level lies beside).
PADDED = PatchGrid((30, 60), (28, 56), 14, 0, (SIDE, SIDE), (GridLevel(ROWS, ROWS),))
TALL = PatchGrid((80, 40), (56, 28), 0, 14, (SIDE, SIDE), (GridLevel(ROWS, ROWS),))
SQUEEZED = PatchGrid(
    (50, 100), (56, 112), 0, 0, (56, 112), (GridLevel(ROWS, ROWS), GridLevel(4, 8, newline_cols=1))
)
GRIDS = (PADDED, TALL, SQUEEZED)
# An image at its own aspect.
WIDE = PatchGrid((40, 90), (2 * PATCH, 5 * PATCH), 0, 0, (2 * PATCH, 5 * PATCH), (GridLevel(2, 5),))


def make_neck(**changes) -> VisionNeck:
    torch.manual_seed(0)
    settings = dict(
        vision_layers=LAYERS,
        vision_channels=VISION_CHANNELS,
        patch_size=PATCH,
        channels=16,
        scales=(2, 1, 0.5),
    )
    return VisionNeck(**{**settings, **changes})


def make_targets(grid: PatchGrid, num_classes: int = 3) -> DenseTargets:
    """Two objects, and a semantic map of three classes with an unknown corner."""
    height, width = grid.image_size
    boxes = np.array(
        [
            [0.1 * width, 0.1 * height, 0.6 * width, 0.7 * height],
            [0.5 * width, 0.4 * height, 0.95 * width, 0.9 * height],
        ]
    )
    semantic = np.zeros((height, width), dtype=np.uint8)
    semantic[: height // 2, : width // 2] = 1
    semantic[height // 2 :, width // 3 :] = num_classes - 1
    semantic[:4, -6:] = 255
    return DenseTargets(
        boxes_xyxy=boxes.astype(np.float32), labels=np.array([0, num_classes - 1]), semantic=semantic
    )


def make_dense_case(
    grids: tuple[PatchGrid, ...] = GRIDS, task: str = "joint", seed: int = 0
) -> tuple[LMMStates, GroundingBatch]:
    """States with maps of all LAYERS and samples with targets, one per grid."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    samples, inputs, vision = [], [], []
    for index, grid in enumerate(grids):
        name = f"case/{index}"
        image = rng.integers(0, 256, (*grid.image_size, 3), dtype=np.uint8)
        samples.append(Sample(name, image, "", (), task=task, dense=make_targets(grid)))
        tiles = () if len(grid.levels) == 1 else (3,)
        rows, cols = grid.view_grid
        inputs.append(
            LMMInputs(
                input_ids=torch.zeros(0, dtype=torch.long),
                phrase_tokens=torch.zeros(0, 0, dtype=torch.bool),
                labels=torch.zeros(0, dtype=torch.long),
                image_mask=torch.zeros(0, dtype=torch.bool),
                prefix_length=0,
                images=one_image(
                    torch.randn(*tiles, 3, rows * PATCH, cols * PATCH, generator=generator), grid
                ),
                record_id=name,
            )
        )
        vision.append(
            {layer: torch.randn(VISION_CHANNELS, rows, cols, generator=generator) for layer in LAYERS}
        )
    return LMMStates(vision=vision), GroundingBatch(samples, inputs)


def select(states: LMMStates, batch: GroundingBatch, index: int) -> tuple[LMMStates, GroundingBatch]:
    return LMMStates(vision=[states.vision[index]]), GroundingBatch(
        [batch.samples[index]], [batch.inputs[index]]
    )


def with_dense(batch: GroundingBatch, index: int, dense: DenseTargets | None) -> GroundingBatch:
    samples = list(batch.samples)
    samples[index] = replace(samples[index], dense=dense)
    return GroundingBatch(samples, batch.inputs)


def total(figures: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(value for name, value in figures.items() if "loss" in name)
