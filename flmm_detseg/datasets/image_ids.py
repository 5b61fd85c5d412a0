"""Which images a file names, and whether an image is one of those that training must not see."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flmm_detseg.datasets.files import load_json, read_lines, require_file, require_list
from flmm_detseg.datasets.safe_pickle import load_plain_pickle
from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import FieldError, check_text, identifier, integer

# 12 digits are COCO's; file names of Visual Genome, GQA and OCR-VQA are shorter numbers of other images.
_COCO_STEM = re.compile(r"(?:^|_)(\d{12})$")
# What Roboflow makes of `kitchen.jpg`, and of each augmented copy of it.
_ROBOFLOW_STEM = re.compile(r"(.+)_(?:jpe?g|png|bmp|webp)\.rf\.[0-9A-Za-z]+$", re.IGNORECASE)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def coco_id_of_path(path: str) -> int | None:
    """COCO image id of ``train2017/000000033471.jpg`` or ``COCO_train2014_000000033471.jpg``, None for other names."""
    match = _COCO_STEM.search(_stem(path))
    return int(match[1]) if match else None


@dataclass(frozen=True)
class ImageIds:
    """Images that files name, by what the files say of them.

    Attributes:
        ids: Of images whose file name is not given; numbers in texts are numbers here.
        coco_ids: COCO ids in file names.
        stems: Of file names without a COCO id, in lower case.
        renamed: Ids of images with such a file name.
    """

    ids: frozenset[int | str] = frozenset()
    coco_ids: frozenset[int] = frozenset()
    stems: frozenset[str] = frozenset()
    renamed: frozenset[int | str] = frozenset()

    def __or__(self, other: ImageIds) -> ImageIds:
        """Images that one of the two names."""
        return ImageIds(
            self.ids | other.ids,
            self.coco_ids | other.coco_ids,
            self.stems | other.stems,
            self.renamed | other.renamed,
        )

    def holds(self, image_id: Any, file_name: str | None) -> bool:
        """Whether an image is one of these.

        A COCO id in its file name says which image it is, whatever number its own file gives it. Else its name (without
        folder, ending and case), or its id where the other side has no such name: an image too many is a loss, one too
        few spoils an evaluation.

        Args:
            image_id: Its id, an integer or a text; None: unknown.
            file_name: Its file, with or without folders; None: unknown.

        Returns:
            True also where it is only likely.
        """
        key = None if image_id is None else _key(image_id)
        if file_name is None:
            return key in self.ids or key in self.coco_ids or key in self.renamed
        coco_id, stem = coco_id_of_path(file_name), _stem(file_name).lower()
        if coco_id is not None:
            return coco_id in self.coco_ids or coco_id in self.ids
        return stem in self.stems or key in self.ids or key in self.coco_ids


def read_images(files: str | Sequence[str] | None, ids: Iterable[int] = ()) -> ImageIds:
    """The images that one or more files name.

    Args:
        files: Each a COCO JSON (its ``images``), a JSON list of ids or file names, ``refs(*).p`` of RefCOCO (the images
            of every split but ``train``), or a text with ids or one file name per line. None: no file.
        ids: Image ids beside.

    Returns:
        The union.

    Raises:
        DataError: A file is missing, or none of these.
    """
    found = ImageIds(ids=frozenset(map(_key, ids)))
    for file in [] if files is None else [files] if isinstance(files, str) else files:
        path = require_file(file, "file of image ids")
        try:
            state = path.stat()
            found |= _read_file(path.absolute(), state.st_mtime_ns, state.st_size, state.st_ino)
        except (LookupError, TypeError, FieldError) as error:
            raise DataError(
                f"{path}: no list of image ids ({type(error).__name__}: {error}). Give a COCO JSON, a JSON list, "
                "refs(*).p of RefCOCO, or a text with one id or file name per line."
            ) from error
    return found


# Each data set of a training leaves out the images of the same files, and a refs file takes seconds.
@functools.lru_cache(maxsize=32)
def _read_file(path: Path, changed: int, size: int, inode: int) -> ImageIds:
    """What one file names; all but ``path`` only tells the file from what it was before."""
    bare, coco_ids, stems, renamed = set[int | str](), set[int](), set[str](), set[int | str]()
    for image_id, name in _images(path):
        coco_id = None if name is None else coco_id_of_path(name)
        if name is None:
            bare.add(_key(image_id))
        elif coco_id is not None:
            coco_ids.add(coco_id)
        else:
            stems.add(_stem(name).lower())
            if image_id is not None:
                renamed.add(_key(image_id))
    return ImageIds(frozenset(bare), frozenset(coco_ids), frozenset(stems), frozenset(renamed))


def _images(path: Path) -> Iterator[tuple[Any, str | None]]:
    """Id and file name of every image that a file names; one of the two may be None."""
    if path.suffix == ".p":
        for ref in load_plain_pickle(path, "refs file"):
            if ref["split"] != "train":
                yield ref["image_id"], None  # its file name is that of an object
    elif path.suffix == ".json":
        content = load_json(path, "file of image ids")
        if isinstance(content, dict):
            for entry in content["images"]:
                name = entry.get("file_name")
                yield entry["id"], None if name is None else check_text(name, "file_name")
        else:
            for value in require_list(content, "image ids", path):
                yield (None, value) if _is_file_name(value) else (value, None)
    else:
        for line in read_lines(path, "file of image ids"):
            if _is_file_name(line):
                yield None, line
            else:
                yield from ((integer(word, "image id", text=True), None) for word in line.split())


def _key(image_id: Any) -> int | str:
    """An id in the form that it is compared in: 42, 42.0, "42" and "000000000042" are one."""
    value = identifier(image_id, "image id")
    return int(value) if isinstance(value, str) and len(value) < 20 and value.isdecimal() else value


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(_SUFFIXES)


def _stem(file_name: str) -> str:
    stem = PurePosixPath(file_name.replace("\\", "/")).stem
    match = _ROBOFLOW_STEM.fullmatch(stem)
    return match[1] if match else stem
