"""Does it help to know where in a region each feature is, as Ferret does? Baseline: llava/regions_llava15_7b."""

from mmengine.config import read_base

with read_base():
    from ..llava.regions_llava15_7b import *

from flmm_detseg.lmms.added.spatial_sampler import SpatialSampler

model["lmm"]["parts"]["regions"] = dict(
    type=SpatialSampler, layers=(-2,), points=512, stages=(128, 32), neighbours=24
)
