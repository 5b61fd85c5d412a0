"""Registered metrics and result files. See docs/architecture.md, section Rooms."""

from flmm_detseg.evaluation.png_metric import PNGMetric, png_figures
from flmm_detseg.evaluation.records import phrase_records
from flmm_detseg.evaluation.ref_seg_metric import RefSegMetric, ref_seg_figures

__all__ = ["PNGMetric", "RefSegMetric", "phrase_records", "png_figures", "ref_seg_figures"]
