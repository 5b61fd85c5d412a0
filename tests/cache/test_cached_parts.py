"""Own parts are stored and loaded strictly, with a report that tells what was loaded."""

from __future__ import annotations

import logging

import pytest
import torch
from cached_parts import boxed_sample, cached_llava
from safetensors.torch import save_file
from torch import nn

from flmm_detseg.cache.own_tensors import (
    format_part_reports,
    load_own,
    log_part_reports,
    own_tensors,
    part_reports,
    save_own,
)
from flmm_detseg.errors import CheckpointError

TRAINED = dict(projectors="separate", train=("separators", "projectors"), train_layers=1)


def shaken(**arguments):
    model = cached_llava(**arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in own_tensors(model).values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def test_a_stored_model_answers_again(tmp_path):
    trained, untrained = shaken(**TRAINED), cached_llava(**TRAINED)
    stored = save_own(trained, tmp_path / "own.safetensors")
    sample = boxed_sample(0)
    assert untrained.generate(sample, max_new_tokens=8) != trained.generate(sample, max_new_tokens=8)
    assert part_reports(untrained) != stored
    loaded = load_own(untrained, tmp_path / "own.safetensors")
    assert loaded == stored == part_reports(trained)
    assert untrained.generate(sample, max_new_tokens=8) == trained.generate(sample, max_new_tokens=8)
    assert [item.name for item in loaded] == ["separators", "llm", "background_projector", "object_projector"]
    text = format_part_reports(loaded)
    assert all(item.name in text and item.sha256 in text for item in loaded)
    assert loaded[0].num_values == 4 * 32


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(TRAINED, train_layers=0), "unexpected: model.model.language_model"),
        (dict(TRAINED, train_layers=2), "missing: model.model.language_model"),
        (dict(TRAINED, hidden_size=64), "of shape"),
        (dict(TRAINED, positions="packed"), "trained for .* positions 'raster' \\(model: 'packed'\\)"),
        (dict(TRAINED, projectors="shared"), "trained for .* projectors 'separate' \\(model: 'shared'\\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, other, message):
    save_own(shaken(**TRAINED), tmp_path / "own.safetensors")
    model = cached_llava(**other)
    before = part_reports(model)
    with pytest.raises(CheckpointError, match=message):
        load_own(model, tmp_path / "own.safetensors")
    assert part_reports(model) == before


def test_logs_list_what_differs_from_the_unmodified_llava(caplog):
    model = cached_llava(**TRAINED)
    logger = logging.getLogger("parts")
    with caplog.at_level(logging.INFO, "parts"):
        log_part_reports(nn.ModuleDict({"lmm": model, "head": nn.Linear(2, 2)}), logger)
        log_part_reports(nn.Linear(2, 2), logger)
    (record,) = caplog.records
    assert record.getMessage().endswith(format_part_reports(part_reports(model)))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    model = cached_llava()
    (tmp_path / "own.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_own(model, tmp_path / "own.safetensors")
    save_file({"separators": torch.zeros(4, 32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no parts of a CachedLMM"):
        load_own(model, tmp_path / "foreign.safetensors")
