"""Coarse against refined against target, one row per phrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_detseg.visualization import canvas


def draw_comparison(
    image: np.ndarray,
    phrases: Sequence[str],
    coarse_logits: np.ndarray,
    refined_logits: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    *,
    cell: int = 224,
) -> np.ndarray:
    """Draws per phrase: image, coarse probability, refined probability, target; IoU beside each.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        phrases: K texts.
        coarse_logits: float ``[K, h, w]``, un-padded; resized to the image for the IoU.
        refined_logits: float ``[K, H, W]``; None leaves the column out.
        targets: bool ``[K, H, W]``; None leaves column and IoU out.
        cell: Longer side of one cell, pixels.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: Numbers of phrases differ.
    """
    canvas.check_image(image)
    given = [array for array in (coarse_logits, refined_logits, targets) if array is not None]
    if any(len(array) != len(phrases) for array in given):
        raise ValueError(f"{len(phrases)} phrases, but arrays of {[len(array) for array in given]}")
    size = canvas.readable_size(image.shape[:2], min_side=cell, max_side=cell)
    base = canvas.resize_image(image, size)
    rows = []
    for index, phrase in enumerate(phrases):
        colour = canvas.phrase_colour(index)
        target = None if targets is None else np.asarray(targets[index], dtype=bool)
        cells = [canvas.with_title(base, phrase, size=13, colour=colour)]
        kinds = [("coarse", coarse_logits), ("refined", refined_logits)]
        for name, logits in kinds:
            if logits is not None:
                cells.append(_probability_cell(name, np.asarray(logits[index]), base, target))
        if target is not None:
            cells.append(canvas.with_title(_target_cell(base, target, colour), "target", size=13))
        rows.append(canvas.hstack(cells))
    return canvas.vstack(rows, gap=12)


def _probability_cell(
    name: str, logits: np.ndarray, base: np.ndarray, target: np.ndarray | None
) -> np.ndarray:
    probability = 1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -50, 50)))
    shown = canvas.resize_map(probability, base.shape[:2])
    picture = canvas.heat(shown).astype(np.float32)
    edge = canvas.outline(shown > 0.5, 1)
    canvas.blend(picture, edge, (64, 224, 208), 1.0)
    title = name
    if target is not None:
        predicted = canvas.resize_map(logits, target.shape) > 0
        union = int((predicted | target).sum())
        title += f"  IoU {int((predicted & target).sum()) / union:.2f}" if union else "  (both empty)"
    return canvas.with_title(picture.astype(np.uint8), title, size=13)


def _target_cell(base: np.ndarray, target: np.ndarray, colour: canvas.RGB) -> np.ndarray:
    picture = base.astype(np.float32)
    mask = canvas.resize_mask(target, base.shape[:2])
    canvas.blend(picture, ~mask, (0, 0, 0), 0.7)
    canvas.blend(picture, canvas.outline(mask, 2), colour, 1.0)
    return picture.astype(np.uint8)
