"""Casting a model leaves its rotary frequencies alone."""

from __future__ import annotations

import torch
from tiny import tiny_llava

from flmm_detseg.lmms.precision import float32_buffers


def test_a_cast_to_bfloat16_keeps_the_rotary_frequencies():
    adapter = tiny_llava()
    before = {name: buffer.clone() for name, buffer in float32_buffers(adapter).items()}
    adapter.bfloat16()
    after = float32_buffers(adapter)
    assert before
    for name, buffer in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], buffer)
    assert next(adapter.model.parameters()).dtype == torch.bfloat16
