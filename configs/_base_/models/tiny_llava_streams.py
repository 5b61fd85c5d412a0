"""The tiny LLaVA that reads clocks and scores as well (its card says how it was made): what streams are asked of."""

from mmengine.config import read_base

with read_base():
    from .tiny_llava import lmm

lmm.update(pretrained="data/models/tiny_llava_streams")
