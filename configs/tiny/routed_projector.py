"""Three projectors that a router mixes token by token, on TinyWorld's questions; nobody has trained it."""

from mmengine.config import read_base

with read_base():
    from .own_projector import *

from flmm_detseg.lmms.added.routed_projector import RoutedProjector

# The questions show photos only. Depth maps come with files of your own: `"image": ["1.png", "1_depth.png"]` and
# `"modalities": ["rgb", "depth"]` in a line. With such files, leave `keep` out: photos then stay with the LMM's own
# projector, bit for bit, and `tasks=["phrase"]` routes them for phrases alone.
model["lmm"]["parts"] = dict(
    routed=dict(type=RoutedProjector, modalities=["rgb", "depth"], keep=[], load_balance_weight=0.01)
)
