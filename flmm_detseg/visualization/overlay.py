"""Phrases and their masks on the image, with the caption as legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.visualization import canvas

Span = tuple[int, int]
# A tint covers the object's own colour; a contour leaves it as it is.
Style = Literal["tint", "contour"]
STYLES: tuple[Style, ...] = ("tint", "contour")

# Longer side of a picture, pixels.
MIN_SIDE, MAX_SIDE = 448, 1024


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image at the size :func:`draw_grounding` shows it; RGB uint8."""
    size = canvas.readable_size(image.shape[:2], min_side=MIN_SIDE, max_side=MAX_SIDE)
    return canvas.resize_image(image, size)


def draw_grounding(
    image: np.ndarray,
    masks: np.ndarray,
    phrases: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    boxes_xyxy: np.ndarray | None = None,
    *,
    caption: str | None = None,
    spans: Sequence[Sequence[Span]] | None = None,
    score_names: Sequence[str] | None = None,
    alpha: float = 0.5,
    style: Style = "tint",
    min_side: int = MIN_SIDE,
    max_side: int = MAX_SIDE,
) -> np.ndarray:
    """Draws each phrase's mask in its colour; below, the caption with the phrases in the same colours.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        masks: bool ``[K, H, W]`` in image pixels.
        phrases: K texts.
        scores: K numbers to print beside the phrases.
        boxes_xyxy: ``[K, 4]`` half-open pixel boxes to draw; boxes without area are left out.
        caption: Text for the legend; None lists the phrases only.
        spans: Per phrase its character spans in ``caption``; None looks the phrases up in order.
        score_names: K words to print before the scores: what each of them is.
        alpha: Weight of the colour inside a tinted mask, 0 to 1.
        style: ``"tint"`` fills the masks; ``"contour"`` draws their borders alone, where colours are what a picture is
            about.
        min_side: Longer side of the picture at least, pixels (small images are enlarged).
        max_side: Longer side of the picture at most, pixels.

    Returns:
        RGB uint8 ``[H', W', 3]``: the picture and the legend strip.

    Raises:
        ValueError: Shapes do not fit together, or there is no such style.
    """
    canvas.check_image(image)
    if style not in STYLES:
        raise ValueError(f"`style` is {style!r}; there are {', '.join(STYLES)}")
    masks = np.asarray(masks, dtype=bool)
    num_phrases = len(phrases)
    if masks.shape != (num_phrases, *image.shape[:2]):
        raise ValueError(
            f"masks {list(masks.shape)} do not fit {num_phrases} phrases on {list(image.shape[:2])}"
        )
    size = canvas.readable_size(image.shape[:2], min_side=min_side, max_side=max_side)
    picture = canvas.resize_image(image, size).astype(np.float32)
    shown = [canvas.resize_mask(mask, size) for mask in masks]
    # Large masks first, so that a small object on a large region stays visible.
    order = sorted(range(num_phrases), key=lambda index: -int(shown[index].sum()))
    for index in order:
        paint_mask(picture, shown[index], canvas.phrase_colour(index), alpha if style == "tint" else 0.0)
    drawn = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    if boxes_xyxy is not None:
        _draw_boxes(pen, np.asarray(boxes_xyxy, dtype=np.float64), size, image.shape[:2])
    taken: list[tuple[int, int]] = []
    for index in order:
        _draw_number(pen, shown[index], index, size, taken)
    legend = draw_legend(
        phrases, size[1], scores=scores, caption=caption, spans=spans, score_names=score_names
    )
    return canvas.vstack([np.asarray(drawn), legend], gap=0)


def draw_legend(
    phrases: Sequence[str],
    width: int,
    *,
    scores: Sequence[float] | np.ndarray | None = None,
    caption: str | None = None,
    spans: Sequence[Sequence[Span]] | None = None,
    score_names: Sequence[str] | None = None,
    size: int = 16,
) -> np.ndarray:
    """Strip with the caption (phrases on their colours) and one numbered line per phrase.

    Args:
        phrases: K texts.
        width: Of the strip, pixels.
        scores: K numbers printed at the end of the lines.
        caption: Text; None leaves the phrase lines only.
        spans: As in :func:`draw_grounding`.
        score_names: As in :func:`draw_grounding`.
        size: Text height, pixels.

    Returns:
        RGB uint8 ``[h, width, 3]``.
    """
    line_height, margin = size + 8, 8
    words: list[tuple[str, int | None]] = []
    if caption is not None:
        words = _words(caption, spans if spans is not None else find_spans(caption, phrases))
    lines = _wrap(words, width - 2 * margin, size)
    entries = [] if caption is not None and scores is None else list(range(len(phrases)))
    height = margin * 2 + line_height * (len(lines) + len(entries))
    strip = Image.new("RGB", (width, height), canvas.PAPER)
    pen = ImageDraw.Draw(strip)
    top = margin
    for line in lines:
        _write_line(pen, line, margin, top, size)
        top += line_height
    for index in entries:
        colour = canvas.phrase_colour(index)
        pen.rectangle((margin, top + 2, margin + size, top + size + 2), fill=colour)
        number = str(index + 1)
        pen.text(
            (margin + (size - canvas.text_width(number, size - 4)) / 2, top + 3),
            number,
            fill=canvas.text_on(colour),
            font=canvas.font(size - 4),
        )
        name = "" if score_names is None else f"  {score_names[index]}"
        score = "" if scores is None else f"{name}  {float(scores[index]):.2f}"
        room = width - 3 * margin - size - canvas.text_width(score, size)
        text = canvas.shorten(phrases[index], size, room) + score
        pen.text((2 * margin + size, top), text, fill=canvas.INK, font=canvas.font(size))
        top += line_height
    return np.asarray(strip)


def find_spans(caption: str, phrases: Sequence[str]) -> list[list[Span]]:
    """First occurrence of each phrase in the caption (the next if repeated), ``[]`` where absent."""
    found: list[list[Span]] = []
    after: dict[str, int] = {}
    for phrase in phrases:
        start = caption.find(phrase, after.get(phrase, 0)) if phrase else -1
        found.append([(start, start + len(phrase))] if start >= 0 else [])
        if start >= 0:
            after[phrase] = start + len(phrase)
    return found


def paint_mask(picture: np.ndarray, mask: np.ndarray, colour: canvas.RGB, alpha: float) -> None:
    """Fills a mask and draws its border: colour inside, white around, readable on any background.

    Args:
        picture: RGB float32 ``[H, W, 3]``, changed in place.
        mask: bool ``[H, W]``.
        colour: Of the mask.
        alpha: Weight of the colour inside; 0 draws the border alone.
    """
    canvas.blend(picture, mask, colour, alpha)
    width = max(2, max(mask.shape) // 220) + (alpha == 0)  # a border alone is a little wider
    edge = canvas.outline(mask, width)
    canvas.blend(picture, canvas.grow(edge) & ~mask, canvas.PAPER, 0.9)
    canvas.blend(picture, edge, colour, 1.0)


def _draw_boxes(
    pen: ImageDraw.ImageDraw, boxes_xyxy: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]
) -> None:
    scale = np.array([size[1] / image_size[1], size[0] / image_size[0]] * 2)
    for index, box in enumerate(boxes_xyxy * scale):
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=canvas.phrase_colour(index), width=2)


def _draw_number(
    pen: ImageDraw.ImageDraw,
    mask: np.ndarray,
    index: int,
    size: tuple[int, int],
    taken: list[tuple[int, int]],
) -> None:
    """Number of the phrase on a chip inside the mask, in the middle of its widest rows, beside others."""
    if not mask.any():
        return
    widths = mask.sum(axis=1)
    wide = np.flatnonzero(widths >= 0.9 * widths.max())
    row = int(wide[len(wide) // 2])
    columns = np.flatnonzero(mask[row])
    column = int(columns[len(columns) // 2])
    text, height = str(index + 1), max(14, max(size) // 32)
    width = canvas.text_width(text, height) + 6
    left = min(max(column - width // 2, 0), size[1] - width)
    top = min(max(row - height // 2, 0), size[0] - height - 4)
    while any(abs(left - x) < width and abs(top - y) < height + 4 for x, y in taken):
        left += width + 2
    taken.append((left, top))
    colour = canvas.phrase_colour(index)
    pen.rounded_rectangle(
        (left, top, left + width, top + height + 4), radius=4, fill=colour, outline=canvas.PAPER
    )
    pen.text((left + 3, top + 1), text, fill=canvas.text_on(colour), font=canvas.font(height))


def _words(caption: str, spans: Sequence[Sequence[Span]]) -> list[tuple[str, int | None]]:
    """The caption as words, each with the phrase it belongs to (the later phrase where they overlap)."""
    owner: list[int | None] = [None] * len(caption)
    for index, parts in enumerate(spans):
        for start, end in parts:
            owner[start:end] = [index] * (end - start)
    words: list[tuple[str, int | None]] = []
    start = 0
    for position in range(len(caption) + 1):
        ends = position == len(caption) or caption[position].isspace()
        if not ends and position > start and owner[position] != owner[position - 1]:
            ends = True
        if ends:
            if position > start:
                words.append((caption[start:position], owner[start]))
            start = position + (position < len(caption) and caption[position].isspace())
    return words


def _wrap(
    words: Sequence[tuple[str, int | None]], width: int, size: int
) -> list[list[tuple[str, int | None]]]:
    lines: list[list[tuple[str, int | None]]] = []
    used = 0
    for text, phrase in words:
        length = canvas.text_width(text + " ", size) + 1
        if not lines or used + length > width:
            lines.append([])
            used = 0
        lines[-1].append((text, phrase))
        used += length
    return lines


def _write_line(
    pen: ImageDraw.ImageDraw, line: Sequence[tuple[str, int | None]], left: float, top: float, size: int
) -> None:
    for position, (text, phrase) in enumerate(line):
        length = canvas.text_width(text + " ", size)
        if phrase is None:
            pen.text((left, top), text, fill=canvas.INK, font=canvas.font(size))
        else:
            colour = canvas.phrase_colour(phrase)
            joined = position + 1 < len(line) and line[position + 1][1] == phrase
            right = left + (length + 1 if joined else canvas.text_width(text, size) + 2)
            pen.rectangle((left - 2, top, right, top + size + 4), fill=colour)
            pen.text((left, top), text, fill=canvas.text_on(colour), font=canvas.font(size))
        left += length + 1
