"""Do weights learned as uncertainties beat fixed ones? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.models import UncertaintyWeighting

model.update(balancer=dict(weighting=dict(type=UncertaintyWeighting)))
