"""Samples with random masks and predictions that resemble them, for the tests of metrics."""

from __future__ import annotations

import numpy as np
import torch

from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.structures import LogitMaps, PackedMasks, Phrase, Prediction, Sample


def make_prediction(
    record_id: str, coarse: torch.Tensor, refined: torch.Tensor | None, image_size: tuple[int, int]
) -> Prediction:
    resized = torch.nn.functional.interpolate(
        coarse[:, None], size=image_size, mode="bilinear", align_corners=False
    )[:, 0]
    logits = resized if refined is None else refined
    masks = logits > 0
    return Prediction(
        record_id=record_id,
        image_size=image_size,
        coarse_logits=coarse,
        refined=None if refined is None else LogitMaps(refined, image_size),
        packed=PackedMasks.pack(masks),
        boxes_xyxy=masks_to_boxes(masks),
        scores=torch.full((len(masks),), 0.5),
    )


def make_pairs(
    num: int, seed: int = 0, empty_every: int = 0, refiner: bool = True
) -> tuple[list[Sample], list[Prediction]]:
    """Samples of different sizes with 1..3 phrases; every ``empty_every``-th phrase has no object."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    samples, predictions, count = [], [], 0
    for index in range(num):
        height, width, num_phrases = (
            int(rng.integers(12, 30)),
            int(rng.integers(12, 30)),
            int(rng.integers(1, 4)),
        )
        masks = np.zeros((num_phrases, height, width), dtype=bool)
        for k in range(num_phrases):
            count += 1
            if not empty_every or count % empty_every:
                y, x = int(rng.integers(0, height - 6)), int(rng.integers(0, width - 6))
                masks[k, y : y + int(rng.integers(3, 9)), x : x + int(rng.integers(3, 9))] = True
        target = torch.from_numpy(masks).float()
        noise = torch.randn(target.shape, generator=generator)
        refined = (target - 0.5) * float(rng.uniform(0.5, 8)) + noise
        if rng.random() < 0.2:
            refined -= 20  # predicts nothing
        coarse = torch.nn.functional.interpolate(refined[:, None], size=(9, 10), mode="bilinear")[:, 0]
        text = " ".join("abc"[:num_phrases])
        phrases = tuple(
            Phrase(
                ((2 * k, 2 * k + 1),), is_thing=bool(rng.random() < 0.6), is_plural=bool(rng.random() < 0.3)
            )
            for k in range(num_phrases)
        )
        image = np.zeros((height, width, 3), np.uint8)
        samples.append(Sample(f"fake/{index:03d}", image, text, phrases, masks))
        prediction = make_prediction(
            f"fake/{index:03d}", coarse, refined if refiner else None, (height, width)
        )
        predictions.append(prediction)
    return samples, predictions
