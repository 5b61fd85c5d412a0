"""InternVL3.5: InternVL3 with a language model that normalises queries and keys."""

import tiny_internvl
from tiny_families import LLAMA

from flmm_detseg.lmms.families.internvl import InternVLAdapter


def build(**arguments) -> InternVLAdapter:
    """As the tiny InternVL3."""
    return tiny_internvl.build(dict(LLAMA, model_type="qwen3", head_dim=8), **arguments)
