"""Stage 2 with shared parts: one SAM for phrases and objects, one neck for boxes and label maps whose gate knows the task.

Stage 1 gives its phrase and detection heads: --cfg-options 'model.init_from=[PHRASE,DETECTION]'
'model.new_parts=["lmm.","heads.segmentation.","parts.neck.gate."]'; alone it begins at random heads.
"""

from mmengine.config import read_base

with read_base():
    from .detseg_joint import *

model.update(
    # A task that the gate has a row for, though no data set of this recipe has it yet.
    parts=dict(
        sam=phrase_grounding["sam"],
        neck=dict(detection["neck"], gate="task", gate_tasks=["reasoning"]),
    ),
    heads=dict(
        detection=dict(neck="neck", sam="sam"),
        segmentation=dict(neck="neck"),
        phrase=dict(sam="sam"),
    ),
    instance_masks=False,
)
# The SAM is no part of `heads.phrase.` any more.
optim_wrapper["optimizer"]["groups"]["parts.sam."] = dict(lr_mult=0.5)
