"""Do the masks come from the language model? The tiny recipe on a control LMM: trained tower, random language model.

The control is made by ``python tools/make_control_lmm.py --out work_dirs/quickstart/control_lmm``.
"""

from mmengine.config import read_base

with read_base():
    from .frozen_tiny_llava_refcoco_png import *

model.update(lmm=dict(pretrained="work_dirs/quickstart/control_lmm"))
