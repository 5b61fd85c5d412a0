"""Results as tasks of Label Studio with predictions, to be corrected by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import quoteattr

from flmm_detseg.inference.export.brush_rle import encode_brush
from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.regions import Region, WithRegions

MODEL_VERSION = "flmm_detseg"


class LabelStudioTasks:
    """Collects results; each image is a task with one prediction.

    What was to be segmented is a brush mask. What was to be detected is a rectangle, and a brush mask beside it where
    there is one. Empty masks are left out.

    Args:
        url_prefix: Stands before each image's file name, where Label Studio finds the files, for example
            ``"/data/local-files/?d=photos/"``.
    """

    def __init__(self, url_prefix: str = "") -> None:
        self._prefix = url_prefix
        self._tasks: list[dict[str, Any]] = []
        self._labels: dict[str, set[str]] = {"brushlabels": set(), "rectanglelabels": set()}

    def add(self, result: WithRegions, file_name: str) -> dict[str, Any]:
        """Adds a task.

        Args:
            result: What was found.
            file_name: Of the image, below the prefix.

        Returns:
            The task, JSON-ready.

        Raises:
            RunError: A score or box is NaN or infinite; nothing is added.
        """
        height, width = result.image.shape[:2]
        entries: list[dict[str, Any]] = []
        scores = []
        for region in checked(result.regions):
            found = list(_values(region, (height, width)))
            scores += [region.score] if found else []
            for kind, value in found:
                entries.append(
                    {
                        "id": f"{len(entries) + 1:06d}",
                        "type": kind,
                        "from_name": _TAGS[kind],
                        "to_name": "image",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "score": region.score,
                        "value": value | {kind: [region.label]},
                    }
                )
        for entry in entries:
            self._labels[entry["type"]].update(entry["value"][entry["type"]])
        prediction: dict[str, Any] = {"model_version": MODEL_VERSION, "result": entries}
        if scores:
            prediction["score"] = sum(scores) / len(scores)
        task = {"data": {"image": self._prefix + file_name}, "predictions": [prediction]}
        self._tasks.append(task)
        return task

    def content(self) -> list[dict[str, Any]]:
        """The file that Label Studio imports, JSON-ready."""
        return self._tasks

    def labeling_config(self) -> str:
        """The project's labelling interface (XML): without these tags and labels the importer refuses predictions."""
        lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
        for kind, tag in (("brushlabels", "BrushLabels"), ("rectanglelabels", "RectangleLabels")):
            if self._labels[kind]:
                lines.append(f'  <{tag} name="{_TAGS[kind]}" toName="image">')
                lines += [f"    <Label value={quoteattr(label)}/>" for label in sorted(self._labels[kind])]
                lines.append(f"  </{tag}>")
        return "\n".join([*lines, "</View>", ""])


_TAGS = {"brushlabels": "brush", "rectanglelabels": "rectangle"}


def _values(region: Region, image_size: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Types and geometry of a region's entries."""
    if region.mask is not None and not region.mask.any():
        return
    if region.kind == "detect" or region.mask is None:
        (height, width), (left, top, right, bottom) = image_size, region.box_xyxy
        yield (
            "rectanglelabels",
            {
                "x": 100 * left / width,
                "y": 100 * top / height,
                "width": 100 * (right - left) / width,
                "height": 100 * (bottom - top) / height,
                "rotation": 0,
            },
        )
    if region.mask is not None:
        yield "brushlabels", {"format": "rle", "rle": encode_brush(region.mask)}
