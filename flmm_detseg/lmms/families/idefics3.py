"""Idefics3 (transformers' ``Idefics3ForConditionalGeneration``)."""

from __future__ import annotations

from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor

from flmm_detseg.lmms.idefics_family import UTTERANCES, IdeficsFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS


class Idefics3(IdeficsFamily):
    """See :class:`IdeficsFamily`. What begins a text (``<|begin_of_text|>``) the tokenizer puts there.

    Source: Building and better understanding vision-language models (arXiv 2408.12637).
    """

    model_class = Idefics3ForConditionalGeneration
    config_class = Idefics3Config
    processor_class = Idefics3Processor
    template = UTTERANCES


@MODELS.register_module()
class Idefics3Adapter(LMM):
    """Idefics3. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Idefics3
