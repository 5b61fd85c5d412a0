"""What results have in common: exports of one image."""

from __future__ import annotations

from typing import Any

from flmm_detseg.inference.export.coco import CocoFile, annotation
from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.export.label_studio import LabelStudioTasks
from flmm_detseg.inference.export.to_supervision import to_supervision
from flmm_detseg.inference.regions import WithRegions


class Exportable:
    """An image and what was found in it; several results go through
    :class:`~flmm_detseg.inference.export.folder.ExportFolder`.
    """

    def to_coco(
        self: WithRegions, image_id: int | str = 0, *, category_id: int = 1, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """The result as COCO annotations (JSON-ready); :meth:`to_coco_file` is a whole file.

        Args:
            image_id: Written into each annotation.
            category_id: Written into each annotation: phrases have no category of their own.
            first_id: ``id`` of the first annotation.

        Returns:
            A dict a region: id, image_id, category_id, segmentation (compressed RLE, counts as text), bbox ``[x, y, w,
            h]``, area, iscrowd, score, score_of, phrase, spans.

        Raises:
            RunError: A score or box is NaN or infinite.
        """
        return [
            annotation(region, image_id, category_id, first_id + index)
            for index, region in enumerate(checked(self.regions))
        ]

    def to_coco_file(
        self: WithRegions, file_name: str, *, polygon_tolerance: float | None = None
    ) -> dict[str, Any]:
        """The result as a whole COCO file (JSON-ready), see :class:`~flmm_detseg.inference.export.coco.CocoFile`.

        Args:
            file_name: Of the image.
            polygon_tolerance: None: masks as RLE; else polygons where they are as near as that.

        Returns:
            ``images``, ``annotations`` and ``categories`` of this one image.

        Raises:
            RunError: A score or box is NaN or infinite.
        """
        coco = CocoFile(polygon_tolerance)
        coco.add(self, file_name)
        return coco.content()

    def to_label_studio(self: WithRegions, image_url: str) -> dict[str, Any]:
        """The result as a task of Label Studio (JSON-ready), brush masks and rectangles as predictions.

        Args:
            image_url: Where Label Studio finds the image.

        Returns:
            The task; a file to import is a list of them.

        Raises:
            RunError: A score or box is NaN or infinite.
        """
        return LabelStudioTasks().add(self, image_url)

    def to_supervision(self: WithRegions) -> Any:
        """The result as ``supervision.Detections``, see
        :func:`~flmm_detseg.inference.export.to_supervision.to_supervision`.
        """
        return to_supervision(self)
