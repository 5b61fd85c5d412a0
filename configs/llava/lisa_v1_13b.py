"""LISA-13B-v1 as its authors trained it: what `flmm-detseg import lisa` makes of the published model.

flmm-detseg import lisa FOLDER --out data/models/lisa_v1_13b
"""

from mmengine.config import read_base

with read_base():
    from .._base_.recipes.lisa_v1 import *

model.lmm.update(pretrained="data/models/lisa_v1_13b/lmm")
model.heads.reasoning.sam.update(checkpoint="data/models/lisa_v1_13b/sam")
load_from = "data/models/lisa_v1_13b/heads.safetensors"
