"""Pictures: the one place where files and PIL images are decoded, or refused by an error that names file and record.

Images become RGB uint8, as a viewer shows them. Whatever Pillow raises while it decodes is caught in
:func:`open_picture`: which exceptions its decoders know is not listed anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import DataError, FlmmError
from flmm_detseg.utils.paths import places
from flmm_detseg.utils.values import max_pixels, shown, too_many_pixels

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray

# What convert("RGB") turns into what a viewer shows. Anything else is an error: Pillow clips deep modes (I;16, I, F) to
# 255 on conversion, so that a 16-bit image would turn white without a word.
_IMAGE_MODES = frozenset(
    ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
)
_DEEP_MODES = ("I", "F")
# Labels are exact pixel values; every other format may have changed them.
_LOSSLESS_FORMATS = frozenset(("PNG", "BMP", "GIF", "TIFF", "PPM", "TGA"))
_LOSSY_TIFF = frozenset(("jpeg", "tiff_jpeg", "webp"))
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def open_picture(
    source: str | Path | Image.Image, record: str = "", what: str = "image"
) -> Iterator[Image.Image]:
    """Opens a picture for decoding inside the ``with`` block; what is raised there is an error of this picture.

    Args:
        source: File, or an opened PIL image (left open).
        record: Record that asks for it, for the error.
        what: Its role, for the error: ``"image"``, ``"label map"``.

    Yields:
        The picture, not larger than :func:`~flmm_detseg.utils.values.max_pixels`, not decoded yet.

    Raises:
        RecordError: Missing (kind ``"missing image"``), too large (``"too large"``), or it cannot be decoded
            (``"broken image"``).
    """
    given = isinstance(source, Image.Image)
    file = (
        (getattr(source, "filename", "") or "PIL image") if isinstance(source, Image.Image) else str(source)
    )
    again = "Copy or download it again, or use policy='skip' with verify_images=True."
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        try:
            if picture.format == "EPS":  # Pillow would start Ghostscript on it
                message, remedy = f"{what} is an EPS file, which is a program", "Save it as PNG or JPEG."
                raise record_error(str(file), record, message, remedy, "broken image")
            size = (picture.height, picture.width)
            if 0 in size:
                raise record_error(str(file), record, f"{what} has no pixel", again, "broken image")
            if size[0] * size[1] > max_pixels():
                message = f"{what} is too large: {too_many_pixels(size)}"
                raise record_error(str(file), record, message, "See docs/own_data.md.", "too large")
            yield picture
        finally:
            if not given:
                picture.close()
    except FileNotFoundError as error:
        remedy = f"Check the path ({places(file)}), or the image folder in the config."
        raise record_error(str(file), record, f"{what} not found", remedy, "missing image") from error
    except (FlmmError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        message = f"{what} is too large ({error})"
        remedy = "Scale it down. (This limit is Pillow's own, PIL.Image.MAX_IMAGE_PIXELS.)"
        raise record_error(str(file), record, message, remedy, "too large") from error
    except Exception as error:
        message = f"{what} cannot be decoded ({type(error).__name__}: {error})"
        raise record_error(str(file), record, message, again, "broken image") from error


def orientation(picture: Image.Image) -> int:
    """EXIF (or XMP) orientation of a picture, 1 to 8; 1 where there is none or it cannot be read.

    Viewers show a picture whose metadata are broken as it is stored, so a broken tag makes no picture unreadable.
    """
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # parsers of foreign metadata fail in their own ways: SyntaxError, struct.error, ...
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def load_image(path: str | Path, record: str = "") -> np.ndarray:
    """Reads an image file; as :func:`read_image`, for paths only."""
    with open_picture(path, record) as picture:
        return _rgb(picture, str(path), record)


def read_image(image: ImageLike, record: str) -> np.ndarray:
    """Pixels of an image, by whatever road it comes.

    The EXIF orientation is applied (annotation tools and viewers do so); alpha is dropped; palette, grey and CMYK
    images become RGB. The same is refused of a path, a PIL image and an array: more than 8 bits per channel, floats,
    more pixels than :func:`~flmm_detseg.utils.values.max_pixels`.

    Args:
        image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``.
        record: Record that asks for it, for the error.

    Returns:
        RGB, uint8, ``[H, W, 3]``, contiguous.

    Raises:
        DataError: Missing, broken, truncated, too large, of another depth, shape or type.
    """
    if isinstance(image, str | Path):
        return load_image(image, record)
    if isinstance(image, Image.Image):
        with open_picture(image, record) as picture:
            return _rgb(picture, getattr(picture, "filename", "") or "PIL image", record)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{record}: an image is a path, a PIL image or an RGB uint8 array [H, W, 3], not {shown(image)} "
            f"({type(image).__name__})"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(
            f"{record}: an RGB uint8 array [H, W, 3] is needed, got {image.dtype} {list(image.shape)}; "
            "for float images multiply by 255 and convert, for PIL images pass them as they are"
        )
    if image.shape[0] * image.shape[1] > max_pixels():
        raise DataError(f"{record}: image is too large: {too_many_pixels(image.shape[:2])}")
    return np.ascontiguousarray(image)


def _rgb(picture: Image.Image, file: str, record: str) -> np.ndarray:
    if picture.mode not in _IMAGE_MODES:
        deep = picture.mode.startswith(_DEEP_MODES)
        reason = "has more than 8 bits per channel" if deep else "is not known"
        raise record_error(
            file, record, f"image mode {picture.mode} {reason}", "Convert it to 8-bit RGB.", "broken image"
        )
    picture.load()  # PNG: the EXIF chunk may come after the pixels
    turn = _TURNS.get(orientation(picture))
    return np.asarray((picture if turn is None else picture.transpose(turn)).convert("RGB"))


def image_size(path: str | Path, record: str = "") -> tuple[int, int]:
    """``(H, W)`` of an image as :func:`load_image` gives it, from its header only.

    Args:
        path: The image file.
        record: Whose image it is, for the error.

    Returns:
        Rows and columns after the turn that the header asks for.

    Raises:
        RecordError: As :func:`open_picture`.
    """
    with open_picture(path, record) as picture:
        size = (picture.height, picture.width)
        # Pillow turns a TIFF by itself, and gives the size that it will have.
        return size[::-1] if picture.format != "TIFF" and orientation(picture) >= 5 else size


def read_labels(
    path: str | Path,
    record: str,
    what: str,
    modes: frozenset[str],
    size: tuple[int, int] | None = None,
    *,
    as_rgb: bool = False,
) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Reads a picture whose pixel values are labels: a mask, a label map, a panoptic map.

    Args:
        path: The file.
        record: Record that asks for it, for the error.
        what: Its role, for the error.
        modes: Pillow modes that the caller knows how to read; another one is an error, never a guess.
        size: ``(H, W)`` that it must have (checked before it is decoded); None: any.
        as_rgb: Give the colours, also of a palette picture.

    Returns:
        Its mode, its values ``[H, W]`` or ``[H, W, C]`` without the alpha plane, and the alpha plane (None: it has
        none).

    Raises:
        RecordError: As :func:`open_picture`; of another mode or size, or saved in a format that changes pixel values.
    """
    with open_picture(path, record, what) as picture:
        found = (picture.height, picture.width)
        compression = picture.info.get("compression")
        if picture.format not in _LOSSLESS_FORMATS or (
            picture.format == "TIFF" and compression in _LOSSY_TIFF
        ):
            message = f"{what} is a {picture.format} picture, whose compression changes pixel values, that is labels"
            remedy = "Save it as PNG, from the original labels."
            raise record_error(str(path), record, message, remedy, "lossy labels")
        if picture.mode not in modes:
            known = ", ".join(sorted(modes))
            message = (
                f"{what} has pixels of Pillow's mode {picture.mode}, which are no labels (known: {known})"
            )
            raise record_error(
                str(path), record, message, "Save it as an 8-bit grey or palette PNG.", "bad map"
            )
        if picture.mode in ("RGB", "RGBA", "LA") and _is_deep(picture):
            message = f"{what} has more than 8 bits per channel, of which Pillow keeps the upper 8"
            raise record_error(str(path), record, message, "Save it with 8 bits per channel.", "bad map")
        if size is not None and found != tuple(size):
            message = f"{what} is {found[0]} x {found[1]}, its image {size[0]} x {size[1]} (H x W)"
            remedy = "Use the picture that belongs to the image, at its original size."
            raise record_error(str(path), record, message, remedy, "size mismatch")
        step = _grey_step(picture)
        values = np.asarray(picture.convert("RGB") if as_rgb else picture)
        if as_rgb:
            return picture.mode, values, None
        if picture.mode in ("LA", "PA", "RGBA"):
            planes, alpha = values[..., :-1], values[..., -1]
            return picture.mode, planes[..., 0] if planes.shape[-1] == 1 else planes, alpha
        return picture.mode, values if step == 1 else values // step, None


def _is_deep(picture: Image.Image) -> bool:
    return any(re.search(";16[BLN]", form) for form in _raw_forms(picture))


def _grey_step(picture: Image.Image) -> int:
    """Pillow's factor for grey values of 2 or 4 bits, so that the largest is 255 (tools that shrink PNGs)."""
    return next(
        (255 // (2 ** int(form[2]) - 1) for form in _raw_forms(picture) if re.match("L;[24]", form)), 1
    )


def _raw_forms(picture: Image.Image) -> list[str]:
    # Before decoding, a tile names the raw form of the file's pixels: "RGB;16B" becomes the mode RGB. It is
    # the decoder's argument, or the first of its arguments.
    arguments = [tile[3] for tile in getattr(picture, "tile", ())]
    return [str(form[0] if isinstance(form, tuple) and form else form) for form in arguments]


def check_image_size(image: np.ndarray, size: tuple[int, int], path: str | Path, record: str) -> None:
    """Checks that an image has the ``(H, W)`` its annotation file says.

    Args:
        image: ``[H, W, 3]``.
        size: ``(H, W)`` as annotated.
        path: The image file, for the error.
        record: Whose image it is, for the error.

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
