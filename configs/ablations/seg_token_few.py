"""How far do 240 queries bring a model that has seen none? It starts from ablations/seg_token_zero_shot.

LISA was fine-tuned on 239. The queries are the first ones of the set:
flmm-detseg data tinyworld --out data/tinyworld_few --images 60 --reason 80 2 2
"""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

train_dataloader["dataset"]["datasets"][0].update(folder="data/tinyworld_few/reason_seg_v2/train")
