"""Where the regions of a miss come from, for ``ttft.py``."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

from flmm_detseg.cache import FrameDifference, GivenRegions, HFDetector, Partitioner, Regions, RegionSource
from flmm_detseg.cache.regions.sources import SESSION
from flmm_detseg.structures import Sample

DETECTORS = ("difference", "rtdetr", "boxes")
RTDETR = "RT-DETR R18 (random weights: time only)"


class TimeOnly(RegionSource):
    """The objects that come with the sample, and the time of a detector whose own boxes mean nothing.

    Args:
        detector: Runs on every sample.
        name: Of the detector, for tables.
    """

    def __init__(self, detector: RegionSource, name: str) -> None:
        self.name = name
        self._detector, self._given = detector, GivenRegions("meta")

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        self._detector.find(sample)
        return self._given.find(sample)


class SceneDifference(FrameDifference):
    """Tells scenes apart by ``Sample.meta["scene"]``, whatever session of the cache asks; no change is too large."""

    def __init__(self) -> None:
        super().__init__(max_change=1.0)

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        return super().find(replace(sample, meta={**sample.meta, SESSION: sample.meta["scene"]}))


def random_rtdetr(device: str = "cpu", small: bool = False) -> HFDetector:
    """RT-DETR as released with a ResNet-18 (20 million weights, 640 x 640 pixels, 300 queries), but random weights.

    Args:
        device: Where it runs.
        small: Narrow and 64 x 64 pixels: does it run?
    """
    widths, width, side = ([8] * 4, 16, 64) if small else ([64, 128, 256, 512], 256, 640)
    backbone = RTDetrResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=[2] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        encoder_hidden_dim=width,
        encoder_ffn_dim=4 * width,
        hidden_expansion=0.5,
        d_model=width,
        decoder_in_channels=[width] * 3,
        decoder_ffn_dim=4 * width,
        decoder_layers=3,
        num_queries=20 if small else 300,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RTDetrForObjectDetection(config)
    # HFDetector reads folders: so the real class is timed, its pre- and post-processing included.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        RTDetrImageProcessor(size=dict(height=side, width=side)).save_pretrained(folder)
        return HFDetector(folder, device=device)


def partitioner(
    detector: str, *, dilate: int, device: str = "cpu", small: bool = False, scenes: bool = False
) -> Partitioner:
    """From a name to groups of patches.

    Args:
        detector: One of ``DETECTORS``.
        dilate: See :class:`Partitioner`.
        device: Of the detector.
        small: See :func:`random_rtdetr`.
        scenes: Samples name their scene, see :class:`SceneDifference`.
    """
    source: RegionSource
    if detector == "difference":
        source = SceneDifference() if scenes else FrameDifference()
    elif detector == "rtdetr":
        source = TimeOnly(random_rtdetr(device, small), RTDETR)
    else:
        source = GivenRegions("meta")
    return Partitioner(source, dilate=dilate)
