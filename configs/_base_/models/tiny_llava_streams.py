"""The tiny LLaVA that reads clocks and scores as well, for questions about streams (its card says how it was made)."""

from mmengine.config import read_base

with read_base():
    from .tiny_llava import lmm

lmm.update(pretrained="data/models/tiny_llava_streams")
