"""Which attention heads locate a phrase, and what they attend to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.structures import PatchGrid
from flmm_detseg.visualization import canvas


def head_ious(stack: np.ndarray, target: np.ndarray) -> np.ndarray:
    """IoU of each map with a mask, at the map's own best threshold.

    Args:
        stack: Maps ``[C, rows, cols]``.
        target: bool ``[rows, cols]``; the mask on the map's grid.

    Returns:
        float64 ``[C]``, in [0, 1]; 0 everywhere when the target is empty.
    """
    flat = stack.reshape(len(stack), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    hits = np.cumsum(target.reshape(-1)[order], axis=1)
    union = np.arange(1, flat.shape[1] + 1) + target.sum() - hits
    values = np.take_along_axis(flat, order, axis=1)
    # A threshold cannot separate cells of equal value: only the last of them counts.
    last = np.append(values[:, 1:] < values[:, :-1], np.ones((len(flat), 1), dtype=bool), axis=1)
    return np.where(last, hits / union, 0.0).max(axis=1)


def head_concentration(stack: np.ndarray) -> np.ndarray:
    """How concentrated a map is: one minus its entropy over log of the number of cells.

    Args:
        stack: Non-negative maps ``[C, rows, cols]``.

    Returns:
        float64 ``[C]``: 1 for a single cell, 0 for a flat or empty map.
    """
    flat = stack.reshape(len(stack), -1).astype(np.float64)
    total = flat.sum(axis=1, keepdims=True)
    share = np.where(total > 0, flat / np.maximum(total, 1e-30), 1 / flat.shape[1])
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum(axis=1)
    return 1 - entropy / np.log(max(flat.shape[1], 2))


def rank_heads(stack: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Scores every channel: IoU with the mask when one is given, else concentration.

    Args:
        stack: ``[C, rows, cols]``, cut to the image.
        mask: bool ``[H, W]`` in image pixels.

    Returns:
        float64 ``[C]``.
    """
    if mask is None:
        return head_concentration(stack)
    share = np.asarray(
        Image.fromarray(mask.astype(np.float32)).resize(stack.shape[:0:-1], Image.Resampling.BOX)
    )
    # A mask smaller than half a cell still has a best cell.
    target = share >= min(0.5, float(share.max())) if mask.any() else np.zeros_like(share, dtype=bool)
    return head_ious(stack, target)


def draw_attention_heads(
    image: np.ndarray,
    stack: np.ndarray,
    heads: Sequence[tuple[int, int]],
    mask: np.ndarray | None = None,
    *,
    grid: PatchGrid | None = None,
    phrase: str | None = None,
    top: int = 7,
    cell: int = 224,
    target: str = "mask",
) -> np.ndarray:
    """Draws the heads that carry a phrase: the best heads' maps on the image and every head's score.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        stack: One phrase's attention ``[C, rows, cols]``; of two-level families all coarse channels first, then all
            fine ones.
        heads: ``(layer, head)`` of the channels of a level, each once.
        mask: bool ``[H, W]``, the phrase's mask: heads are ranked by IoU with it; None: by concentration.
        grid: Geometry of the stack; cuts the padding away. None takes the stack to cover the image exactly.
        phrase: Text of the phrase for the title.
        top: Number of heads shown.
        cell: Longer side of one shown map, pixels.
        target: What ``mask`` is, for the title: ``"model's own mask"``, ``"target mask"``.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: C is not a multiple of the number of heads, or shapes do not fit.
    """
    canvas.check_image(image)
    per_level = len(heads)
    if stack.ndim != 3 or per_level == 0 or len(stack) % per_level:
        raise ValueError(f"stack {list(stack.shape)} does not hold the maps of {per_level} heads")
    if grid is not None:
        stack = stack[(slice(None), *grid.crop_window((stack.shape[1], stack.shape[2])))]
    scores = rank_heads(stack, mask)
    names = [
        ("fine: " if level else "coarse: ") * (len(stack) > per_level) + f"layer {layer} head {head}"
        for level in range(len(stack) // per_level)
        for layer, head in heads
    ]
    measure = "concentration" if mask is None else "IoU"
    size = canvas.readable_size(image.shape[:2], min_side=cell, max_side=cell)
    base = canvas.resize_image(image, size)
    cells = [_mask_cell(base, mask, measure)]
    for channel in np.argsort(-scores, kind="stable")[:top]:
        title = f"{names[channel]}  {measure} {scores[channel]:.2f}"
        cells.append(canvas.with_title(_map_on_image(base, stack[channel], mask), title, size=12))
    columns = max(3, min(5, (len(cells) + 1) // 2))
    rows = [canvas.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    table = _score_table(scores, heads, measure)
    title = "heads that carry it" if phrase is None else f'"{phrase}": heads that carry it'
    if mask is not None:
        title += f" (IoU with the {target})"
    picture = canvas.vstack([*rows, table])
    return canvas.with_title(picture, title, size=16)


def _mask_cell(base: np.ndarray, mask: np.ndarray | None, measure: str) -> np.ndarray:
    picture = base.astype(np.float32)
    if mask is not None:
        _ring(picture, canvas.resize_mask(mask.astype(bool), base.shape[:2]))
    title = "image" if mask is None else "image and mask"
    return canvas.with_title(picture.astype(np.uint8), title, size=12)


def _map_on_image(base: np.ndarray, values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Grey image under the map's colours; each map is scaled to its own range."""
    grey = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2)
    scaled = canvas.resize_map(values, base.shape[:2], smooth=False)
    colours = canvas.heat(scaled, low=float(values.min()), high=float(values.max())).astype(np.float32)
    picture = 0.35 * grey + 0.65 * colours
    if mask is not None:
        _ring(picture, canvas.resize_mask(mask.astype(bool), base.shape[:2]))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _ring(picture: np.ndarray, mask: np.ndarray) -> None:
    edge = canvas.outline(mask, 2)
    canvas.blend(picture, canvas.grow(edge) & ~edge, (0, 0, 0), 0.8)
    canvas.blend(picture, edge, (64, 224, 208), 1.0)


def _score_table(scores: np.ndarray, heads: Sequence[tuple[int, int]], measure: str) -> np.ndarray:
    """One coloured cell per head (rows: layers, columns: heads; coarse and fine levels side by side); heads that are
    not in the stack have the colour of the paper.
    """
    layer_ids, head_ids = (sorted(set(indices)) for indices in zip(*heads, strict=True))
    rows, columns = (
        [labels.index(label) for label in own]
        for labels, own in zip((layer_ids, head_ids), zip(*heads, strict=True), strict=True)
    )
    levels = scores.reshape(-1, len(heads))
    side = max(10, min(26, 900 // (len(levels) * len(head_ids))))
    left, top = 64, 40
    step = max(1, round(24 / side))
    width = left + len(levels) * (len(head_ids) * side + 24)
    title = f"{measure} of every head: rows are layers, columns heads; bright is {scores.max():.2f}"
    width = max(width, canvas.text_width(title, 12) + 8)
    picture = Image.new("RGB", (width, top + len(layer_ids) * side + 4), canvas.PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((0, 2), title, fill=canvas.INK, font=canvas.font(12))
    for row in range(0, len(layer_ids), step):
        pen.text(
            (0, top + row * side + side // 2 - 6),
            f"layer {layer_ids[row]}",
            fill=canvas.FAINT,
            font=canvas.font(11),
        )
    for index in range(len(levels)):
        start = left + index * (len(head_ids) * side + 24)
        for column in range(0, len(head_ids), step):
            pen.text(
                (start + column * side + side // 2 - 4, top - 16),
                str(head_ids[column]),
                fill=canvas.FAINT,
                font=canvas.font(11),
            )
    out = np.array(picture)
    for index, level in enumerate(levels):
        start = left + index * (len(head_ids) * side + 24)
        cells = np.full((len(layer_ids), len(head_ids), 3), canvas.PAPER, dtype=np.uint8)
        cells[rows, columns] = canvas.heat(level[None], low=0.0, high=float(scores.max()))[0]
        colours = cells.repeat(side, 0).repeat(side, 1)
        out[top : top + colours.shape[0], start : start + colours.shape[1]] = colours
    return out
