"""Does it help to know where in a region each feature is, as Ferret does? Baseline: tiny/region_questions."""

from mmengine.config import read_base

with read_base():
    from ..tiny.region_questions import *

from flmm_detseg.lmms.added.spatial_sampler import SpatialSampler

model["lmm"]["parts"]["regions"] = dict(
    type=SpatialSampler, layers=(-2,), points=128, stages=(32, 8), neighbours=8
)
