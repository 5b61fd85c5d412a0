"""A presence head on F-LMM's heads of LLaVA-1.5-7B, which stay: --cfg-options 'model.init_from=[PHRASE]'. Untrained here.

Negatives are absent classes (phrases of other images). They do not teach absent attributes or relations: add own-data
lines that say those (docs/presence.md).
"""

from mmengine.config import read_base

with read_base():
    from .frozen_llava15_7b_refcoco_png import *

from flmm_detseg.datasets import AbsentPhrases
from flmm_detseg.engine import PresenceCalibrationHook
from flmm_detseg.heads import PresenceHead

model["heads"]["phrase"].update(
    presence=dict(
        type=PresenceHead,
        hidden_layers=(8, 16, 24, 32),
        vision_layers=(12, 23),
        width=256,
        cells=24,
        reads_likelihood=True,
    ),
)
model.update(
    # All of the phrase head but its presence head.
    freeze=["phrase.mask_head.", "phrase.sam.", "phrase.text_"],
    init_from=[],
    new_parts=["heads.phrase.presence."],
)
# RefCOCO's instances file has every object of its images, those without an expression too.
_absent = dict(type=AbsentPhrases, instances_file="data/refcoco/instances.json")
train_dataloader.update(batch_size=8)
train_dataloader["dataset"] = dict(_absent, dataset=dict(refcoco_train, layout="split"))
train_cfg.update(max_epochs=1)
param_scheduler[0].update(end=0.03)
param_scheduler[1].update(begin=0.03, end=1)
_val, _test = refcoco_eval["refcoco_val"], refcoco_eval["refcoco_testB"]
custom_hooks.append(
    dict(type=PresenceCalibrationHook, dataset=dict(_absent, dataset=dict(_val)), max_samples=4000)
)
presence_eval = dict(absent_classes=dict(_absent, dataset=dict(_test)))
