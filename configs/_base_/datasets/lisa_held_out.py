"""LISA's questions about classes and referring expressions, without the images that RefCOCO(+/g) is evaluated on.

For recipes that are evaluated there beside other ones. COCO-Stuff is missing: its reader leaves out no image. refCLEF,
ADE20K, Mapillary and PASCAL-Part have images of other sources.
"""

from mmengine.config import read_base

with read_base():
    from .coco_ade_vqa import referring_sets
    from .lisa import (
        ade,
        gcg_eval,
        mapillary,
        paco,
        pascal_part,
        reason_eval,
        reason_train,
        refclef,
        refcoco,
        refcoco_plus,
        refcocog,
    )

from flmm_detseg.datasets import ClassPrompts, SegAnswers, WeightedMix

paco.update(exclude_image_ids_file=referring_sets)
refcoco.update(exclude_image_ids_file=referring_sets)
refcoco_plus.update(exclude_image_ids_file=referring_sets)
refcocog.update(exclude_image_ids_file=referring_sets)
class_train = dict(
    type=WeightedMix,
    datasets=[
        dict(type=ClassPrompts, dataset=ade),
        dict(type=ClassPrompts, dataset=mapillary),
        dict(type=ClassPrompts, dataset=paco),
        dict(type=ClassPrompts, dataset=pascal_part),
    ],
    weights=[1, 1, 1, 1],
)
refer_train = dict(
    type=WeightedMix,
    datasets=[
        dict(type=SegAnswers, dataset=refclef),
        dict(type=SegAnswers, dataset=refcoco),
        dict(type=SegAnswers, dataset=refcoco_plus),
        dict(type=SegAnswers, dataset=refcocog),
    ],
    weights=[1, 1, 1, 1],
)
