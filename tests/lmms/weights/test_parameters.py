"""The parameter report against counts by hand."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_llava
from torch import nn

from flmm_detseg.lmms.weights.parameters import format_report, parameter_report


class Model(nn.Module):
    """Shaped like the assembly."""

    def __init__(self, lora: dict | None) -> None:
        super().__init__()
        self.lmm = tiny_llava(dtype="bfloat16", lora=lora)
        self.heads = nn.ModuleDict({"detection": nn.Linear(10, 5), "phrase": nn.Linear(4, 3)})
        self.scale = nn.Parameter(torch.ones(2))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_groups_counts_and_shares():
    base = Model(None)
    report = parameter_report(Model(dict(llm=dict(r=2), projector=dict(r=4))))
    groups = {group.name: group for group in report.groups}
    # Three layers, four 32 x 32 linears each; two linears of the projector.
    llm, projector = 3 * 4 * 2 * (32 + 32), 2 * 4 * (32 + 32)
    model = base.lmm.model.model
    expected = {
        "lmm.vision": (count(model.vision_tower), 0),
        "lmm.projector": (count(model.multi_modal_projector), 0),
        "lmm.llm": (count(model.language_model), 0),
        "lmm.other": (count(base.lmm.model.lm_head), 0),
        "lora.llm": (llm, llm),
        "lora.projector": (projector, projector),
        "heads.detection": (55, 55),
        "heads.phrase": (15, 15),
        "scale": (2, 2),
    }
    assert {name: (group.total, group.trainable) for name, group in groups.items()} == expected
    trainable = llm + projector + 72
    assert (report.total, report.trainable) == (count(base) + llm + projector, trainable)
    assert report.trainable_share == pytest.approx(trainable / report.total)
    assert groups["lora.llm"].share == pytest.approx(llm / trainable)
    assert sum(group.share for group in report.groups) == pytest.approx(1)
    assert groups["lmm.vision"].bytes == 2 * count(model.vision_tower)
    assert groups["lora.llm"].bytes == 4 * llm


def test_memory_of_mixed_and_cast_weights():
    model = Model(dict(llm=dict(r=2)))
    report = parameter_report(model)
    small, trained = count(model.lmm) - 3 * 4 * 2 * 64, 3 * 4 * 2 * 64 + 72
    assert report.memory.weights == 2 * small + 4 * trained
    assert report.memory.gradients == 4 * trained
    assert report.memory.optimizer == 8 * trained
    assert report.memory.total == 2 * small + 16 * trained
    assert report.full_memory.gradients == 2 * small + 4 * trained
    # 16-bit weights have a float32 copy beside the two moments.
    assert report.full_memory.optimizer == 12 * small + 8 * trained
    cast = parameter_report(model, weight_dtype=torch.bfloat16, gradient_dtype=torch.float32)
    assert cast.memory.weights == 2 * (small + trained)
    assert (cast.memory.gradients, cast.memory.optimizer) == (4 * trained, 12 * trained)


def test_seven_billion_parameters_on_the_meta_device():
    from flmm_detseg.lmms import LlavaAdapter

    with torch.device("meta"):
        adapter = LlavaAdapter.from_config({}, dtype="bfloat16", lora=dict(vision={}, llm={}))
    report = parameter_report(adapter)
    groups = {group.name: group.trainable for group in report.groups}
    assert groups["lora.llm"] == 32 * 4 * 16 * (4096 + 4096)
    assert groups["lora.vision"] == 24 * 3 * 8 * (1024 + 1024)
    assert 0.002 < report.trainable_share < 0.003
    assert report.memory.total < 0.2 * report.full_memory.total


def test_table_and_json_say_the_same():
    report = parameter_report(Model(dict(llm=dict(r=2))))
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["trainable"] == sum(group["trainable"] for group in facts["groups"].values())
    assert facts["memory_bytes"]["total"] == report.memory.total
    table = format_report(report).splitlines()
    assert len(table) == 1 + len(report.groups) + 1 + 2
    row = next(line for line in table if line.startswith("lora.llm"))
    assert f"{report.groups[0].total:,}" in table[1]
    assert "1,536" in row
    assert "full fine-tuning" in table[-1]
