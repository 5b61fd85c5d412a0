"""Vectors by task: tensors of older checkpoints, and tasks that came later."""

from __future__ import annotations

import pytest
import torch
from dense_parts import make_dense_case, make_neck
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.gates import build_gate
from flmm_detseg.heads.task_rows import TASKS, TaskRows, rows_since

OLD_ORDER = ("phrase", "detection", "segmentation", "vqa", "joint")  # of files, whatever the code says


def old_state(channels: int = 3) -> dict[str, torch.Tensor]:
    """As an embedding of five tasks stored it: row k holds k."""
    return {"weight": torch.arange(5.0)[:, None].repeat(1, channels)}


def test_rows_of_an_older_file_come_to_their_tasks() -> None:
    rows = TaskRows(3, ("reasoning",))
    begin = rows.added["reasoning"].detach().clone()
    missing, unexpected = rows.load_state_dict(old_state(), strict=False)
    assert (missing, unexpected) == (["added.reasoning"], [])
    for number, task in enumerate(OLD_ORDER):
        assert rows([task]).tolist() == [[number] * 3]
    assert torch.equal(rows(["joint", "reasoning", "phrase"])[1], begin)
    assert rows(["joint", "reasoning", "phrase"])[::2].tolist() == [[4] * 3, [0] * 3]


def test_without_new_tasks_it_is_the_embedding_it_was() -> None:
    torch.manual_seed(3)
    before, drawn = nn.Embedding(len(TASKS), 4), torch.rand(())
    torch.manual_seed(3)
    rows = TaskRows(4)
    assert torch.equal(torch.rand(()), drawn), "another number of random numbers was drawn"
    assert list(rows.state_dict()) == ["weight"]
    assert torch.equal(rows.weight, before.weight)
    (rows(["vqa", "detection", "vqa"]).sum() * 2).backward()
    before(torch.tensor([3, 1, 3])).sum().mul(2).backward()
    assert torch.equal(rows.weight.grad, before.weight.grad)
    torch.manual_seed(3)
    assert torch.equal(TaskRows(4, ("reasoning",)).weight, before.weight), (
        "a new task changes no other's start"
    )


@pytest.mark.parametrize("name", ["task", "dynamic"])
def test_a_new_task_learns_its_own_row(name: str) -> None:
    torch.manual_seed(0)
    gate = build_gate(name, 4, 6, initial_share=0.5, tasks=["reasoning", "counting"])
    maps = torch.randn(2, 4, 6, 5, 7)
    gate(maps, ["reasoning", "detection"]).square().sum().backward()
    rows = gate.task_embedding
    assert rows.added["reasoning"].grad.abs().sum() > 0
    assert rows.added["counting"].grad.abs().sum() == 0
    assert rows.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [OLD_ORDER.index("detection")]


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (("phrase",), "'phrase' has a row already"),
        (("reasoning", "reasoning"), "'reasoning' has a row already"),
        (("two words",), "'two words' cannot be the name of a parameter"),
        (("a.b",), "cannot be the name"),
        (("items",), "cannot be the name"),
        (("training",), "cannot be the name"),
        (("_modules",), "cannot be the name"),
        ((3,), "cannot be the name"),
    ],
)
def test_names_that_cannot_be(added, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TaskRows(3, added)


def test_tasks_are_for_gates_that_look_at_them() -> None:
    with pytest.raises(ConfigError, match=r"look at the task \(task, dynamic\); `gate` is 'static'"):
        make_neck(gate="static", gate_tasks=["reasoning"])
    with pytest.raises(ConfigError, match="give a list of names"):
        make_neck(gate="task", gate_tasks="reasoning")


def test_a_sample_of_an_unknown_task_is_named() -> None:
    states, batch = make_dense_case(task="reasoning")
    with pytest.raises(
        ConfigError, match=r"case/0: .*no row for task 'reasoning' \(rows: phrase.*`gate_tasks`"
    ):
        make_neck(gate="task")(states, batch)
    with pytest.raises(ConfigError, match="no row for task 'reasoning'"):
        build_gate("dynamic", 4, 6)(torch.zeros(1, 4, 6, 2, 2), ["reasoning"])
    make_neck(gate="static")(states, batch)
    make_neck(gate="dynamic", gate_tasks=["reasoning"])(states, batch)


def test_rows_since_a_file_was_written() -> None:
    model = nn.ModuleDict({"a": TaskRows(2, ("reasoning", "counting")), "b": TaskRows(2, ("reasoning",))})
    file = {"a.weight": torch.zeros(5, 2), "a.added.counting": torch.zeros(2)}
    assert rows_since(model, file) == ["a.added.reasoning"], (
        "of b the file holds nothing: that is no older file"
    )
