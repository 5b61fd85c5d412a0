"""Loading images: RGB uint8, as a viewer shows them, or an error that names file and record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flmm_detseg.datasets.policy import RecordError, record_error

# Pillow clips these modes to 255 on conversion to RGB: a 16-bit image would turn white without a word.
_DEEP_MODES = ("I", "F")


def load_image(path: str | Path, record: str = "") -> np.ndarray:
    """Reads an image.

    The EXIF orientation is applied (annotation tools and viewers do so); alpha is dropped; palette, grey
    and CMYK images become RGB.

    Args:
        path: The image file.
        record: Record that asks for it, for the error.

    Returns:
        RGB, uint8, ``[H, W, 3]``.

    Raises:
        DataError: Missing, broken, truncated, or deeper than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(_DEEP_MODES):
                raise record_error(
                    str(path), record, f"image mode {image.mode} has more than 8 bits per channel",
                    "Convert it to 8-bit RGB.", "broken image",
                )  # fmt: skip
            image = ImageOps.exif_transpose(image)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise record_error(
            str(path), record, "image not found", "Check the image folder in the config.", "missing image"
        ) from error
    except RecordError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise record_error(
            str(path), record, f"image cannot be decoded ({type(error).__name__}: {error})",
            "Copy or download it again, or use policy='skip' with verify_images=True.", "broken image",
        ) from error  # fmt: skip


def check_image_size(image: np.ndarray, size: tuple[int, int], path: str | Path, record: str) -> None:
    """Checks that an image has the ``(H, W)`` its annotation file says.

    Raises:
        DataError: It has not.
    """
    if image.shape[:2] != tuple(size):
        found = f"{image.shape[0]} x {image.shape[1]} pixels (H x W)"
        raise record_error(
            str(path), record, f"image is {found}, its annotation says {size[0]} x {size[1]}",
            "The image was replaced, resized or EXIF-rotated after annotation: use the original file.",
            "size mismatch",
        )  # fmt: skip
