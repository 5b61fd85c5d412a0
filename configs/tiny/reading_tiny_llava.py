"""TextVQA and OCR-VQA as in llava/reading_llava15_7b, with a tiny LLaVA: whether files and machine are right.

flmm-detseg evaluate answers configs/tiny/reading_tiny_llava.py --untrained --limit 20 --max-new-tokens 8

The tiny LLaVA knows TinyWorld, so its answers to these questions are wrong.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.textvqa_ocrvqa import vqa_eval as reading_eval
    from ..cache.tiny_ladder_stock import *

vqa_eval = reading_eval
