"""SmolVLM2 (transformers' ``SmolVLMForConditionalGeneration``); the first SmolVLM is an Idefics3 to transformers."""

from __future__ import annotations

from dataclasses import replace

from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor

from flmm_detseg.lmms.idefics_family import UTTERANCES, IdeficsFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS


class SmolVLM(IdeficsFamily):
    """See :class:`IdeficsFamily`.

    Source: SmolVLM (arXiv 2504.05299).
    """

    model_class = SmolVLMForConditionalGeneration
    config_class = SmolVLMConfig
    processor_class = SmolVLMProcessor
    template = replace(UTTERANCES, first=f"<|im_start|>{UTTERANCES.first}")


@MODELS.register_module()
class SmolVLMAdapter(LMM):
    """SmolVLM2. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = SmolVLM
