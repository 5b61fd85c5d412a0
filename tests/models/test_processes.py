"""Two real processes, plain and with ZeRO-2, train as one process does with both shares of the data."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_parts import ROOT, environment
from two_processes import CASES, plain, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes found, all cases in one start."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(ROOT / "tests" / "two_processes.py"), str(folder)]
    processes = [
        subprocess.Popen(
            command,
            env={**environment(), **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(e[-3000:] for e in errors)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return {case: train(case, plain) for case in CASES}


def read(folder: Path, case: str, engine: str, rank: int = 0) -> dict:
    return torch.load(folder / f"{case}_{engine}_{rank}.pt", weights_only=True)


@pytest.mark.parametrize("engine", ["plain", "zero2"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "uneven"])
def test_two_processes_train_as_one(folder, alone, case: str, engine: str) -> None:
    agree(read(folder, case, engine), alone[case])


def test_plain_processes_may_hold_different_tasks(folder, alone) -> None:
    agree(read(folder, "uneven", "plain"), alone["uneven"])


def test_deepspeed_refuses_different_tasks_in_all_processes(folder) -> None:
    for rank in range(2):
        error = read(folder, "uneven", "zero2", rank)["error"]
        assert "the processes hold samples of different heads" in error
        assert "one_task" in error


def agree(found: dict, wanted: dict) -> None:
    for one, two in zip(found["logs"], wanted["logs"], strict=True):
        assert set(one) == set(two)
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    assert set(found["tensors"]) == set(wanted["tensors"])
    for name, tensor in wanted["tensors"].items():
        torch.testing.assert_close(found["tensors"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_the_cases_show_something(alone) -> None:
    """The weights learned move, absent heads move, gradients conflict."""
    gradnorm = alone["gradnorm"]
    assert (gradnorm["tensors"]["balancer.weighting.first_losses"] > 0).all()
    weights = gradnorm["tensors"]["balancer.weighting.logits"]
    assert (weights.abs() > 1e-3).all()
    variances = [v for k, v in alone["uncertainty"]["tensors"].items() if "log_variance" in k]
    assert len(variances) == 4
    assert min(abs(float(v)) for v in variances) > 1e-3
    assert alone["pcgrad"]["tensors"]["balancer.num_steps"] == 3
    scales = [v for log in alone["pcgrad"]["logs"] for k, v in log.items() if "pcgrad_" in k]
    assert max(abs(scale - 1) for scale in scales) > 1e-2
