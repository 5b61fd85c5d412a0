"""Checkpoints, and what they record of their LMM, fit under every release of transformers: weights have one name."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from tiny_families import build

from flmm_detseg.compat.transformers5 import stored_names

# By family: of names and shapes under transformers 4.57.6.
EXPECTED = json.loads(Path(__file__).with_name("weight_names.json").read_text())


@pytest.mark.parametrize("family", EXPECTED)
def test_files_name_weights_as_under_transformers_4(family):
    model = build(family).model
    weights = dict(model.named_parameters())
    stored = stored_names(model, list(weights))
    lines = sorted(f"{stored[name]} {list(weight.shape)}" for name, weight in weights.items())
    found = {"weights": len(lines), "sha256": sha256("\n".join(lines).encode()).hexdigest()[:16]}
    assert found == EXPECTED[family], lines
