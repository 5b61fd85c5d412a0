"""LISA-7B-v1 as its authors trained it: what `flmm-detseg import lisa` makes of the published model.

flmm-detseg import lisa FOLDER --out data/models/lisa_v1_7b
"""

from mmengine.config import read_base

with read_base():
    from .._base_.recipes.lisa_v1 import *

model.lmm.update(pretrained="data/models/lisa_v1_7b/lmm")
model.heads.reasoning.sam.update(checkpoint="data/models/lisa_v1_7b/sam")
load_from = "data/models/lisa_v1_7b/heads.safetensors"
