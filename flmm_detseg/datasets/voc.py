"""Pascal VOC annotations (a folder of XML files) as one COCO JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tqdm import tqdm

from flmm_detseg.datasets.files import is_file, read_lines, require_dir
from flmm_detseg.datasets.images import image_size
from flmm_detseg.datasets.policy import ProblemLog, RecordError, as_record_error, record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.choices import DIFFICULT
from flmm_detseg.utils.values import check_text, is_number, shown

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp")
_CLASS_FLAG = re.compile(r"\s+-?[01]$")
_REMEDY = "Mend the file, or skip such files (policy='skip', --skip)."


@dataclass(frozen=True)
class VOCOptions:
    """How VOC annotations are read.

    Attributes:
        classes: Names in the order of their ids; other objects are an error. None: the names found, sorted.
        stems: Files to read, without ``.xml`` (an ``ImageSets/Main/*.txt`` list); None: all of the folder.
        first_pixel: Coordinate of the first pixel: 1 as in Pascal VOC, 0 for most annotation tools. The maximum belongs
            to the box in both.
        difficult: What to do with objects marked difficult: ``"ignore"`` (``iscrowd=1``: neither learned nor counted),
            ``"keep"`` or ``"drop"``.
        policy: ``"raise"`` | ``"skip"`` for files that cannot be used (one XML file is the unit skipped).
    """

    classes: tuple[str, ...] | None = None
    stems: tuple[str, ...] | None = None
    first_pixel: int = 1
    difficult: str = "ignore"
    policy: str = "raise"

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that is not allowed."""
        if self.first_pixel not in (0, 1):
            raise ConfigError(f"`first_pixel` is {self.first_pixel}; allowed: 0, 1")
        if self.difficult not in DIFFICULT:
            raise ConfigError(f"`difficult` is {self.difficult!r}; allowed: {', '.join(DIFFICULT)}")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ConfigError("`classes` names a class twice")


@dataclass
class _Object:
    name: str
    bbox: list[float]  # x, y, width, height; half-open pixels
    difficult: bool


@dataclass
class _File:
    file_name: str
    size: tuple[int, int]  # (H, W)
    objects: list[_Object] = field(default_factory=list)


def read_stems(path: str) -> tuple[str, ...]:
    """Reads a VOC list of images (``ImageSets/Main/train.txt``), a name a line.

    Lists of one class have 1, 0 or -1 after the name; :func:`convert_voc` looks for the file to distinguish it from a
    name with blanks.

    Args:
        path: The list.

    Returns:
        The lines that are not empty, in order.

    Raises:
        DataError: The file is missing, or no UTF-8 text.
    """
    return tuple(read_lines(path, "list of images"))


def _xml_path(root: Path, line: str) -> Path:
    for stem in (line, _CLASS_FLAG.sub("", line)):
        for name in (f"{stem}.xml", stem):
            if name.lower().endswith(".xml") and is_file(root / name):
                return root / name
    return root / f"{_CLASS_FLAG.sub('', line)}.xml"


def convert_voc(
    xml_dir: str, image_dir: str, options: VOCOptions = VOCOptions(), progress: bool = True
) -> tuple[dict[str, Any], ProblemLog]:
    """Reads VOC files into COCO's instance format.

    Image ids count from 1 in the order of file names, category ids in the order of the classes. Boxes are cut to the
    image; those without an area left are dropped (``dropped["degenerate box"]``). Sizes are those of the image files.

    Args:
        xml_dir: Folder of the XML files (sub-folders too).
        image_dir: Folder of the images.
        options: How to read them.
        progress: Show a progress bar.

    Returns:
        The COCO dict, and the log of skipped files and dropped objects.

    Raises:
        DataError: A folder is missing or empty, or (``policy="raise"``) a file is unusable.
    """
    root, images = require_dir(xml_dir, "folder of VOC XML files"), require_dir(image_dir, "image folder")
    log = ProblemLog(options.policy)
    if options.stems is None:
        paths = sorted(root.rglob("*.xml"))
    else:
        paths = [_xml_path(root, line) for line in options.stems]
    if not paths:
        raise DataError(
            f"{root}: no XML file in it. Give the folder of the annotations (VOC: `Annotations`)."
        )
    found_of: dict[str, _File | None] = {}  # None: two files claim the image
    claimed_by: dict[str, Path] = {}
    for path in tqdm(paths, desc="VOC", unit="file", disable=not progress):
        try:
            file = _read_file(path, images, options, log)
            first = claimed_by.setdefault(file.file_name, path)
            if first is not path:
                found_of[file.file_name] = None  # each has a part of the objects, at best
                message = f"it is about the image {file.file_name}, and so is {first}"
                raise _problem(path, message, "two files of one image")
            found_of[file.file_name] = file
        except Exception as error:
            log.handle(as_record_error(error, str(path), "", _REMEDY))
    files = [file for file in found_of.values() if file is not None]
    if not files:
        raise DataError(
            f"{root}: none of {len(paths)} XML files can be used. First problem: {log.problems[0]}"
        )
    found = sorted({item.name for file in files for item in file.objects})
    return _coco(files, options.classes if options.classes is not None else tuple(found)), log


def write_coco(content: dict[str, Any], out: str) -> None:
    """Writes a COCO dict; the file appears only when it is complete."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, path)


def _coco(files: Sequence[_File], classes: Sequence[str]) -> dict[str, Any]:
    category_id = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, file in enumerate(files, start=1):
        height, width = file.size
        images.append({"id": image_id, "file_name": file.file_name, "height": height, "width": width})
        for item in file.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id[item.name],
                    "bbox": item.bbox,
                    "area": item.bbox[2] * item.bbox[3],
                    "iscrowd": int(item.difficult),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_id.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _problem(path: Path, message: str, kind: str, record: str = "") -> RecordError:
    return record_error(str(path), record, message, _REMEDY, kind)


def _read_file(path: Path, image_dir: Path, options: VOCOptions, log: ProblemLog) -> _File:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise _problem(path, "file not found", "missing file") from None
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise _problem(path, f"not well-formed XML ({error})", "broken XML") from error
    if root.tag != "annotation":
        raise _problem(path, f"its root is <{root.tag}>, a VOC file has <annotation>", "malformed")
    image_path = _find_image(path, root, image_dir)
    size = image_size(image_path, str(path))
    _check_declared_size(path, root, size)
    name = check_text(image_path.relative_to(image_dir).as_posix(), "file name of the image")
    file = _File(name, size)
    for number, element in enumerate(root.findall("object")):
        record = f"object {number}"
        item = _read_object(path, record, element, size, options)
        if item.difficult and options.difficult == "drop":
            log.drop("difficult object", f"{path}: {record}")
        elif item.bbox[2] <= 0 or item.bbox[3] <= 0:
            log.drop("degenerate box", f"{path}: {record}")
        else:
            item.difficult = item.difficult and options.difficult == "ignore"
            file.objects.append(item)
    if image_path.stem != path.stem and (own := _own_image(path, image_dir)) is not None:
        message = (
            f"<filename> says {image_path.name}, but {own.name} is there too: one of the two was renamed"
        )
        raise _problem(path, message, "ambiguous image")
    return file


def _find_image(path: Path, root: ElementTree.Element, image_dir: Path) -> Path:
    # Annotation tools write paths of their own machine; only the last part means something here.
    named = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    if named and is_file(image_dir / named):
        return image_dir / named
    if (own := _own_image(path, image_dir)) is not None:
        return own
    message = f"no image {shown(named or path.stem)} (nor {path.stem}.jpg, .png, ...) in {image_dir}"
    raise _problem(path, message, "missing image")


def _own_image(path: Path, image_dir: Path) -> Path | None:
    """The image with the name of the XML file."""
    candidates = (image_dir / (path.stem + suffix) for suffix in _IMAGE_SUFFIXES)
    return next(filter(is_file, candidates), None)


def _check_declared_size(path: Path, root: ElementTree.Element, size: tuple[int, int]) -> None:
    declared = tuple(_number(path, "", root.find("size"), key) for key in ("height", "width"))
    # Tools that never opened the image write zeros, or no size at all.
    if all(declared) and declared != size:
        text = " x ".join(f"{side:g}" for side in declared if side is not None)
        message = f"<size> says {text}, its image is {size[0]} x {size[1]} (H x W)"
        raise _problem(path, message, "size mismatch")


def _number(path: Path, record: str, element: ElementTree.Element | None, key: str) -> float | None:
    text = None if element is None else element.findtext(key)
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_number(value):
        raise _problem(path, f"<{key}> is {text!r}, not a number", "malformed", record)
    return value


def _read_object(
    path: Path, record: str, element: ElementTree.Element, size: tuple[int, int], options: VOCOptions
) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise _problem(path, "it has no <name>", "malformed", record)
    if options.classes is not None and name not in options.classes:
        raise _problem(path, f"its class {name!r} is not in the given classes", "unknown category", record)
    box = element.find("bndbox")
    corners = [_number(path, record, box, key) for key in ("xmin", "ymin", "xmax", "ymax")]
    if any(value is None for value in corners):
        raise _problem(path, "its <bndbox> lacks xmin, ymin, xmax or ymax", "bad box", record)
    xmin, ymin, xmax, ymax = (float(value) for value in corners if value is not None)
    if xmin > xmax or ymin > ymax:
        raise _problem(path, f"its box {[xmin, ymin, xmax, ymax]} has swapped corners", "bad box", record)
    x0, y0 = max(0.0, xmin - options.first_pixel), max(0.0, ymin - options.first_pixel)
    x1 = min(float(size[1]), xmax - options.first_pixel + 1)
    y1 = min(float(size[0]), ymax - options.first_pixel + 1)
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return _Object(name, [x0, y0, x1 - x0, y1 - y0], difficult)
