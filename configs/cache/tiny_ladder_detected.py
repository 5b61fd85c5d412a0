"""Step 5 where our own detection head says what an object is, as on the miss path of serving. For evaluation only.

tiny_ladder_stages names its run `detector` as the detector's checkpoint; by hand: --cfg-options
model.lmm.partitioner.source.otherwise.checkpoint=FILE. Frames of streams keep the groups that the stream has.
"""

from mmengine.config import read_base

with read_base():
    from .tiny_cached_lora import *

from flmm_detseg.cache import GivenRegions, Partitioner
from flmm_detseg.inference.streaming import HeadRegions

model["lmm"]["partitioner"] = dict(
    type=Partitioner,
    source=dict(
        type=GivenRegions,
        kind="meta",
        otherwise=dict(
            type=HeadRegions,
            config="configs/tiny/detseg_detection.py",
            checkpoint=None,
        ),
    ),
    dilate=1,
)
