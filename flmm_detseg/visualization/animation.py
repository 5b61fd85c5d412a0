"""A moving picture that goes through the phrases of a caption: where the LMM looked, and the mask made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flmm_detseg.errors import DataError
from flmm_detseg.visualization import canvas
from flmm_detseg.visualization.overlay import Span, draw_legend, paint_mask

_SIDE = 320
_SECONDS = 1.6
_ENDINGS = (".gif", ".webp", ".png")


def draw_frames(
    image: np.ndarray,
    caption: str,
    spans: Sequence[Sequence[Span]],
    masks: np.ndarray,
    heat_maps: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Draws a frame for each phrase: its attention on the image, its mask, and the caption with it on its colour.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        caption: Text.
        spans: Per phrase its character spans in the caption, half-open.
        masks: bool ``[K, H, W]``.
        heat_maps: K float maps ``[H, W]``; each is scaled to its own range.

    Returns:
        K frames of one size, RGB uint8.
    """
    canvas.check_image(image)
    size = canvas.readable_size(image.shape[:2], min_side=_SIDE, max_side=_SIDE)
    base = canvas.resize_image(image, size)
    frames = []
    for index, (mask, heat) in enumerate(zip(masks, heat_maps, strict=True)):
        outlined = base.astype(np.float32)
        colour = canvas.phrase_colour(index)
        paint_mask(outlined, canvas.resize_mask(mask, size), colour, 0.0)
        pictures = [
            canvas.with_title(_heated(base, heat), "where the language model looked", size=14),
            canvas.with_title(outlined.astype(np.uint8), "mask", size=14),
        ]
        row = canvas.hstack(pictures)
        # The colours of the phrases before it are its neighbours' in the caption; they are not of this frame.
        own = [list(parts) if other == index else [] for other, parts in enumerate(spans)]
        legend = draw_legend([""] * len(own), row.shape[1], caption=caption, spans=own, size=18)
        frames.append(canvas.vstack([row, legend], gap=0))
    return frames


def save_animation(frames: Sequence[np.ndarray], path: str | Path, *, seconds: float = _SECONDS) -> Path:
    """Writes frames as one picture that repeats for ever.

    Args:
        frames: RGB uint8 ``[H, W, 3]``, all of one size.
        path: The ending decides the format: .gif, .webp, or .png (an animated one). Missing folders are made.
        seconds: How long a frame is shown.

    Returns:
        ``path``.

    Raises:
        DataError: There is no frame, or the ending is another.
    """
    path = check_ending(path)
    if not len(frames):
        raise DataError(f"{path}: no phrase was grounded, so there is nothing to go through")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        # One table of 256 colours for all frames: a table of its own for each would flicker.
        colours = Image.fromarray(np.concatenate(frames)).quantize(256, dither=Image.Dither.NONE)
        pictures = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0)
    return path


def check_ending(path: str | Path) -> Path:
    """The path of a moving picture, when its ending is one of .gif, .webp and .png.

    Args:
        path: File to write.

    Returns:
        It.

    Raises:
        DataError: It has another ending.
    """
    if Path(path).suffix.lower() not in _ENDINGS:
        raise DataError(f"{path}: no moving picture has this ending; use {', '.join(_ENDINGS)}")
    return Path(path)


def _heated(base: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, grey and dark where nothing looked, with the map's colours over it."""
    grey = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2)
    shown = canvas.resize_map(heat, (base.shape[0], base.shape[1]))
    colours = canvas.heat(shown, low=float(shown.min()), high=float(shown.max())).astype(np.float32)
    return np.clip(0.4 * grey + 0.6 * colours, 0, 255).astype(np.uint8)
