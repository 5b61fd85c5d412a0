"""The tiny LLaVA that knows the words of TinyWorld's reasoning set as well (its card says how it was made)."""

from mmengine.config import read_base

with read_base():
    from .tiny_llava import lmm

lmm.update(pretrained="data/models/tiny_llava_reason")
