"""The sets of refcoco_png; none of them is trained on an image that another one is evaluated on.

F-LMM's published protocol is refcoco_png itself: there PNG's training images include images of RefCOCO's val and test.
"""

from mmengine.config import read_base

with read_base():
    from .coco_ade_vqa import referring_sets
    from .refcoco_png import *

from flmm_detseg.datasets import ConcatMix

refcoco_train.update(exclude_image_ids_file=referring_sets)
refcoco_plus_train.update(exclude_image_ids_file=referring_sets)
refcocog_train.update(exclude_image_ids_file=referring_sets)
png_train.update(exclude_image_ids_file=referring_sets)
phrase_train = dict(type=ConcatMix, datasets=[png_train, refcoco_train, refcoco_plus_train, refcocog_train])
train_dataloader.update(dataset=phrase_train)
