"""TextVQA and OCR-VQA with LLaVA-1.5-7B read in two groups, after stage 2; lines of text are objects (extra `ocr`).

flmm-detseg evaluate answers configs/cache/cached_llava15_7b_reading.py --checkpoint FILE --max-new-tokens 32

What reading in groups costs: compare with llava/reading_llava15_7b. These sets repeat no background, so they say nothing
about hits.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.textvqa_ocrvqa import vqa_eval as reading_eval
    from .cached_llava15_7b_lora import *

from flmm_detseg.cache import Partitioner, TextRegions

vqa_eval = reading_eval
model["lmm"]["partitioner"] = dict(type=Partitioner, source=dict(type=TextRegions), dilate=1)
