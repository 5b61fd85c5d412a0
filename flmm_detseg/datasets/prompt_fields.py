"""Fields of a prompt in annotation files besides its text: several images, their modalities, and regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import existing_file
from flmm_detseg.datasets.masks import check_segmentation, decode_segmentation
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import Region
from flmm_detseg.utils.values import FieldError, shown

# Masks stay run lengths until they are used: a file may have many.
RegionField = Region | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptImages:
    """Images of a prompt.

    Attributes:
        path: The first one, which questions are about.
        more: Further ones, after it.
        modalities: See :attr:`Sample.modalities`.
    """

    path: Path
    more: tuple[Path, ...] = ()
    modalities: tuple[str, ...] = ()


def image_names(value: Any) -> tuple[str, ...]:
    """Names of a field ``image``.

    Args:
        value: The name of a file, or a list of such names.

    Returns:
        The names, at least one.

    Raises:
        FieldError: It is something else, or empty.
    """
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise FieldError(
            "`image` is missing, or neither the name of an image file nor a list of names", "missing key"
        )
    return tuple(names)


def read_modalities(value: Any, images: int) -> tuple[str, ...]:
    """Names of a field ``modalities``.

    Args:
        value: None, or a name for each image.
        images: How many there are.

    Returns:
        One for each image; empty for None.

    Raises:
        FieldError: It is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise FieldError(f"`modalities` is {shown(value)}, not a list of names such as ['rgb', 'depth']")
    if len(value) != images:
        raise FieldError(f"`modalities` has {len(value)} names for {images} images")
    return tuple(value)


def find_images(
    entry: dict[str, Any], image_dir: Path, find: Callable[[Path, str, str], Path] = existing_file
) -> PromptImages:
    """Images of an entry of an annotation file, from its fields ``image`` and ``modalities``.

    Args:
        entry: The entry.
        image_dir: Folder that names start from.
        find: Makes sure that a file is there.

    Returns:
        Their files.

    Raises:
        FieldError: A field cannot be used, or a file is missing.
    """
    names = image_names(entry.get("image"))
    modalities = read_modalities(entry.get("modalities"), len(names))
    first, *more = (find(image_dir, name, "image") for name in names)
    return PromptImages(first, tuple(more), modalities)


def region_token_argument(value: Any) -> str:
    """Checks the argument of a data set that says what stands for a region.

    Args:
        value: Of the config.

    Returns:
        The text.

    Raises:
        ConfigError: It is no text, or has white space.
    """
    if not isinstance(value, str) or not value or any(map(str.isspace, value)):
        raise ConfigError(f"`region_token` is {shown(value)}; a text without white space is needed")
    return value


def check_places(question: str, answers: Sequence[str], regions: int, token: str) -> None:
    """Checks that a question has a place for each of its regions, and its answers none.

    Args:
        question: As the LMM will read it.
        answers: To it.
        regions: How many it has.
        token: What stands for one in the texts.

    Raises:
        FieldError: It has more or fewer.
    """
    remedy = "if that is no place of a region here, set `region_token` to what is"
    if (places := question.count(token)) != regions:
        raise FieldError(f"{places} times {token} in the question, but {regions} `regions`; {remedy}")
    if found := next((answer for answer in answers if token in answer), None):
        raise FieldError(f"answer {shown(found)} holds {token}: regions stand in questions; {remedy}")


def read_regions(value: Any) -> tuple[RegionField, ...]:
    """Checks a field ``regions``; whether they lie in the image is checked where it is read.

    Args:
        value: None, or ``[[x, y] | [x0, y0, x1, y1] | {"size": [H, W], "counts": ...}, ...]``: points and boxes in
            pixels of the image, masks as COCO's run lengths.

    Returns:
        For :func:`load_regions`.

    Raises:
        FieldError: It is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FieldError(
            f"`regions` is {shown(value)}, not a list of points [x, y], boxes [x0, y0, x1, y1] and run lengths of masks"
        )
    return tuple(_checked(region) for region in value)


def _checked(region: Any) -> RegionField:
    if not isinstance(region, Mapping) and not (isinstance(region, list) and len(region) in (2, 4)):
        raise FieldError(
            f"`regions`: {shown(region)} is no point [x, y], box [x0, y0, x1, y1] or mask as COCO's run lengths (RLE) "
            '{"size": [H, W], "counts": ...}'
        )
    try:
        if not isinstance(region, Mapping):
            return Region.of(region)
        check_segmentation(region, _size(region))
        return region
    except (DataError, FieldError) as error:
        raise FieldError(f"`regions`: {error}") from error


def load_regions(fields: Sequence[RegionField], image_size: tuple[int, int]) -> tuple[Region, ...]:
    """The regions of a field, of the sample's first image; masks are decoded.

    Args:
        fields: From :func:`read_regions`.
        image_size: ``(H, W)`` of the image.

    Returns:
        The regions, in order.

    Raises:
        FieldError: A mask's run lengths are not those of its size, or a region does not lie in the image.
    """
    regions = []
    for index, field in enumerate(fields):
        try:
            mask = None if isinstance(field, Region) else decode_segmentation(field, _size(field))
            region = field if isinstance(field, Region) else Region(mask=mask)
            region.check([image_size])
        except (DataError, FieldError) as error:
            raise FieldError(f"`regions`[{index}]: {error}") from error
        regions.append(region)
    return tuple(regions)


def _size(rle: Mapping[str, Any]) -> Any:
    return rle.get("size", ())
