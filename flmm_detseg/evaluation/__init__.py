"""Registered metrics and result files. See docs/architecture.md, section Rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.evaluation.box_f1 import text_box_figures
    from flmm_detseg.evaluation.box_records import box_record
    from flmm_detseg.evaluation.coco_metric import COCOBoxMetric, box_figures, coco_figures
    from flmm_detseg.evaluation.forgetting import forgetting_figures, forgetting_record
    from flmm_detseg.evaluation.gcg import gcg_figures
    from flmm_detseg.evaluation.mask_answer_records import mask_answer_record
    from flmm_detseg.evaluation.png_metric import PNGMetric, png_figures
    from flmm_detseg.evaluation.reason_metric import ReasonMetric, reason_figures
    from flmm_detseg.evaluation.records import phrase_records
    from flmm_detseg.evaluation.ref_seg_metric import RefSegMetric, ref_seg_figures
    from flmm_detseg.evaluation.semseg_metric import SemSegMetric, semseg_figures
    from flmm_detseg.evaluation.semseg_records import semseg_record
    from flmm_detseg.evaluation.vqa import answer_record, vqa_figures

__all__ = [
    "COCOBoxMetric",
    "PNGMetric",
    "ReasonMetric",
    "RefSegMetric",
    "SemSegMetric",
    "answer_record",
    "box_figures",
    "box_record",
    "coco_figures",
    "forgetting_figures",
    "forgetting_record",
    "gcg_figures",
    "mask_answer_record",
    "phrase_records",
    "png_figures",
    "reason_figures",
    "ref_seg_figures",
    "semseg_figures",
    "semseg_record",
    "text_box_figures",
    "vqa_figures",
]

__getattr__, __dir__ = lazy_names(__name__)
