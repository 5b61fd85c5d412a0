"""Results of many images as a folder in one format, complete or absent."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.export.coco import CocoFile
from flmm_detseg.inference.export.label_studio import LabelStudioTasks
from flmm_detseg.inference.export.panoptic import PanopticFile
from flmm_detseg.inference.export.yolo import YoloLabels
from flmm_detseg.inference.regions import WithRegions
from flmm_detseg.utils.choices import EXPORT_FORMATS
from flmm_detseg.utils.names import suggest
from flmm_detseg.utils.whole_files import new_folder, write_json, write_text

# Every exported folder has it, and by it an earlier export is known, which may be replaced.
MANIFEST = "export.json"


class ExportFolder(ABC):
    """A folder that results are written to, one after the other.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def add(self, result: WithRegions, image: Path) -> None:
        """Adds the result of an image file."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Writes what is about all images; returns counts of what was written, and of what the format cannot hold."""


class CocoFolder(ExportFolder):
    """``annotations.json``.

    Args:
        folder: Where to write.
        polygon_tolerance: See :class:`~flmm_detseg.inference.export.coco.CocoFile`.
    """

    def __init__(self, folder: Path, polygon_tolerance: float | None = None) -> None:
        super().__init__(folder)
        self._coco = CocoFile(polygon_tolerance)
        self._without_pixels = 0

    def add(self, result: WithRegions, image: Path) -> None:
        """See the base."""
        self._without_pixels += sum(entry["id"] is None for entry in self._coco.add(result, image.name))

    def finish(self) -> dict[str, Any]:
        """See the base."""
        content = self._coco.content()
        write_json(self.folder / "annotations.json", content, indent=None)
        return {
            "annotations": len(content["annotations"]),
            "rle": self._coco.num_rle,
            "polygons": self._coco.num_polygons,
            "empty": self._without_pixels,
        }


class LabelStudioFolder(ExportFolder):
    """``tasks.json`` to import and ``labeling_config.xml`` for the project.

    Args:
        folder: Where to write.
        url_prefix: See :class:`~flmm_detseg.inference.export.label_studio.LabelStudioTasks`.
    """

    def __init__(self, folder: Path, url_prefix: str = "") -> None:
        super().__init__(folder)
        self._tasks = LabelStudioTasks(url_prefix)

    def add(self, result: WithRegions, image: Path) -> None:
        """See the base."""
        self._tasks.add(result, image.name)

    def finish(self) -> dict[str, Any]:
        """See the base."""
        tasks = self._tasks.content()
        write_json(self.folder / "tasks.json", tasks, indent=None)
        write_text(self.folder / "labeling_config.xml", self._tasks.labeling_config())
        kinds = [entry["type"] for task in tasks for entry in task["predictions"][0]["result"]]
        return {"brushes": kinds.count("brushlabels"), "rectangles": kinds.count("rectanglelabels")}


class YoloFolder(ExportFolder):
    """``images/``, ``labels/``, ``classes.txt`` and ``data.yaml``: what a training with YOLO reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._labels = YoloLabels()
        for name in ("images", "labels"):
            (folder / name).mkdir()

    def add(self, result: WithRegions, image: Path) -> None:
        """See the base."""
        labels = self._labels.add(result)
        write_text(self.folder / "labels" / f"{image.stem}.txt", labels)
        shutil.copyfile(image, self.folder / "images" / image.name)

    def finish(self) -> dict[str, Any]:
        """See the base."""
        classes = [" ".join(name.split()) for name in self._labels.classes]
        write_text(self.folder / "classes.txt", "".join(f"{name}\n" for name in classes))
        write_text(self.folder / "data.yaml", self._labels.data_yaml())
        return dict(self._labels.counts._asdict())


class PanopticFolder(ExportFolder):
    """``panoptic.json`` and the maps in ``panoptic/``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = PanopticFile()
        (folder / "panoptic").mkdir()

    def add(self, result: WithRegions, image: Path) -> None:
        """See the base."""
        name = f"{image.stem}.png"
        ids: np.ndarray = self._file.add(result, image.name, name)
        Image.fromarray(ids).save(self.folder / "panoptic" / name)

    def finish(self) -> dict[str, Any]:
        """See the base."""
        write_json(self.folder / "panoptic.json", self._file.content(), indent=None)
        return dict(self._file.counts._asdict())


class Exports:
    """Folders in several formats that the same results go to; see :func:`exporting`.

    Args:
        folders: By format.

    Attributes:
        figures: Per format its folder and counts; there once everything is written.
    """

    def __init__(self, folders: dict[str, ExportFolder]) -> None:
        self._folders = folders
        self._names: dict[str, Path] = {}
        self.figures: dict[str, dict[str, Any]] = {}

    def add(self, result: WithRegions, image: Path) -> None:
        """Adds a result to all folders.

        Args:
            result: What was found.
            image: The file that it is about; formats know it by its name.

        Raises:
            ConfigError: Another image has the same name, so that one of the two would be lost.
            RunError: A score or box is NaN or infinite.
        """
        other = self._names.setdefault(image.stem, image)
        if other is not image:
            raise ConfigError(
                f"{other} and {image} have one name, and an export knows images by their names; rename one of them, or "
                "export them to different folders"
            )
        for folder in self._folders.values():
            folder.add(result, image)

    def finish(self, places: dict[str, Path]) -> None:
        """Writes the rest of all folders.

        Args:
            places: Where each folder will be, for the figures.
        """
        for name, folder in self._folders.items():
            counts = {"images": len(self._names), **folder.finish()}
            write_json(folder.folder / MANIFEST, {"format": name, "by": "flmm_detseg", **counts})
            self.figures[name] = {"folder": str(places[name]), **counts}


@contextmanager
def exporting(
    formats: Sequence[str],
    out: str | Path,
    *,
    polygon_tolerance: float | None = None,
    url_prefix: str = "",
) -> Iterator[Exports]:
    """Folders ``OUT/FORMAT`` to add results to; they take their places when the block ends well, all of them whole.

    Args:
        formats: Of :data:`~flmm_detseg.utils.choices.EXPORT_FORMATS`.
        out: Folder of the folders; made when it is missing.
        polygon_tolerance: For COCO: None writes RLE, see :class:`~flmm_detseg.inference.export.coco.CocoFile`.
        url_prefix: For Label Studio: stands before the images' names.

    Yields:
        What results are added to.

    Raises:
        ConfigError: An unknown format, or a folder of that name holds something else than an earlier export.
    """
    places = {name: export_place(out, name) for name in dict.fromkeys(formats)}
    with ExitStack() as stack:
        folders: dict[str, ExportFolder] = {}
        for name, place in places.items():
            part = stack.enter_context(new_folder(place))
            if name == "coco":
                folders[name] = CocoFolder(part, polygon_tolerance)
            elif name == "label-studio":
                folders[name] = LabelStudioFolder(part, url_prefix)
            elif name == "yolo":
                folders[name] = YoloFolder(part)
            else:
                folders[name] = PanopticFolder(part)
        exports = Exports(folders)
        yield exports
        exports.finish(places)
        for place in places.values():
            if place.exists():  # an earlier export: `export_place` has seen it
                shutil.rmtree(place)


def check_exports(formats: Sequence[str], out: str | Path, polygon_tolerance: float | None = None) -> None:
    """Checks before anything is computed what :func:`exporting` would refuse.

    Args:
        formats: Of :data:`~flmm_detseg.utils.choices.EXPORT_FORMATS`.
        out: Folder of the folders.
        polygon_tolerance: See :class:`~flmm_detseg.inference.export.coco.CocoFile`.

    Raises:
        ConfigError: As there.
    """
    CocoFile(polygon_tolerance)
    for name in formats:
        export_place(out, name)


def export_place(out: str | Path, name: str) -> Path:
    """Where an export goes.

    Args:
        out: Folder of the exports.
        name: The format.

    Returns:
        ``OUT/NAME``; nothing is written here.

    Raises:
        ConfigError: The format is unknown, or the place is taken by something else than an earlier export.
    """
    if name not in EXPORT_FORMATS:
        raise ConfigError(f"export format {name!r}{suggest(name, EXPORT_FORMATS)}")
    place = Path(out) / name
    if (
        place.exists()
        and not (place / MANIFEST).is_file()
        and not (place.is_dir() and not any(place.iterdir()))
    ):
        raise ConfigError(
            f"{place} is there and no export of ours: it would be replaced. Write to another folder, or remove it first"
        )
    return place
