"""Model folders that another release of transformers wrote, by what it writes otherwise into config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_families import build

from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.load_lmm import load_lmm


def written(lmm: LMM, folder: Path, **changes: Any) -> str:
    """The LMM's folder; None removes a field, a dict changes fields within a field."""
    lmm.model.save_pretrained(folder)
    lmm.processor.hub.save_pretrained(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for name, value in changes.items():
        if value is None:
            content.pop(name, None)
        elif isinstance(value, dict):
            content[name].update(value)
        else:
            content[name] = value
    file.write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("spelling", ["lfm2-vl", "lfm2_vl"])
def test_a_type_of_either_spelling(spelling, tmp_path):
    lmm = build("lfm2_vl")
    again = load_lmm(written(lmm, tmp_path, model_type=spelling))
    assert type(again) is type(lmm)
    assert again.processor.hub is not None
    weights = dict(lmm.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in again.model.named_parameters())


@pytest.mark.parametrize("whole", [None, False, True])
def test_tied_tables_are_stated_for_the_text_or_for_the_whole(whole, tmp_path):
    lmm = build("qwen3_vl")
    lmm.model.lm_head.weight = lmm.model.get_input_embeddings().weight
    lmm.model.config.text_config.tie_word_embeddings = True
    folder = written(lmm, tmp_path, tie_word_embeddings=whole, text_config={"tie_word_embeddings": True})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not any("lm_head" in name for name in file.keys())  # noqa: SIM118 (no mapping)
    model = load_lmm(folder).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, lmm.model.lm_head.weight)


def test_tables_that_differ_stay_apart(tmp_path):
    lmm = build("internvl")
    folder = written(lmm, tmp_path, tie_word_embeddings=None, text_config={"tie_word_embeddings": False})
    model = load_lmm(folder).model
    assert torch.equal(model.lm_head.weight, lmm.model.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
