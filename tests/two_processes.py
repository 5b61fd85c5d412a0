"""One of several processes that train a tiny model for a few steps, plainly (DDP) or with DeepSpeed's ZeRO-2.

``python two_processes.py FOLDER``, with the variables a launcher sets, writes ``CASE_ENGINE_RANK.pt``. The test
that starts it (``models/test_processes.py``) runs the same cases in one process by :func:`train`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from multi_task_parts import batch, dense_sample, make_model, move_lora, question
from tiny import make_sample

from flmm_detseg.engine import GlobalLossHook, GroupedAdamW
from flmm_detseg.engine.training.deepspeed_cpu import start_gloo
from flmm_detseg.errors import RunError
from flmm_detseg.models import GradNormWeighting, GroundingLMM, TaskBalancer, UncertaintyWeighting
from flmm_detseg.structures import Sample

ZERO2 = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True, "reduce_scatter": True},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
}  # fmt: skip
Shares = tuple[list[Sample], list[Sample]]
Logs = list[dict[str, float]]


def one_task_steps() -> list[Shares]:
    """All processes have the same task, another one in each step; then the first again."""
    questions = [question(3), question(5)]
    return [
        ([dense_sample(0, "detection")], [dense_sample(1, "detection"), dense_sample(2, "detection")]),
        (questions[:1], questions[1:]),
        ([make_sample(1)], [make_sample(2, num_phrases=3)]),
        ([dense_sample(4, "detection")], [dense_sample(6, "detection")]),
    ]


def mixed_steps() -> list[Shares]:
    """All processes have every task."""
    return [(batch(), [dense_sample(9, "segmentation"), *batch()[:3], dense_sample(7, "segmentation")])] * 3


def uneven_steps() -> list[Shares]:
    """Processes have different tasks."""
    return [
        ([make_sample(0), dense_sample(1, "detection")], [question(2), dense_sample(3, "segmentation")])
    ] * 3


CASES: dict[str, tuple[dict[str, Any], Callable[[], list[Shares]]]] = {
    "one_task": ({}, one_task_steps),
    "uncertainty": ({"weighting": {"type": UncertaintyWeighting}}, mixed_steps),
    "gradnorm": ({"weighting": {"type": GradNormWeighting}}, mixed_steps),
    "pcgrad": ({"gradients": "pcgrad"}, mixed_steps),
    "uneven": ({"weighting": {"type": GradNormWeighting}, "gradients": "pcgrad"}, uneven_steps),
}


def build(case: str) -> tuple[GroundingLMM, GroupedAdamW]:
    """Model and optimizer of a case, equal in all processes."""
    model = make_model(balancer={"type": TaskBalancer, **CASES[case][0]}, l2sp=1e-3).eval()
    move_lora(model)
    # A large eps: AdamW's first steps would blow rounding errors of tiny gradients up to whole steps.
    return model, GroupedAdamW(model.parameters(), lr=1e-2, eps=1e-2, weight_decay=0.1)


def train(
    case: str, wrap: Callable[[GroundingLMM, GroupedAdamW], Callable[[list[Sample]], dict]]
) -> dict[str, Any]:
    """Trains on this process's share of every step.

    Args:
        case: Of :data:`CASES`.
        wrap: From model and optimizer to a training step, which gives the log.

    Returns:
        ``logs`` (means over the processes) and ``tensors`` of the checkpoint.
    """
    model, optimizer = build(case)
    step = wrap(model, optimizer)
    logs: Logs = []
    for shares in CASES[case][1]():
        samples = (
            shares[get_rank()] if get_world_size() > 1 else [sample for share in shares for sample in share]
        )
        log = step(samples)
        GlobalLossHook().after_train_iter(SimpleNamespace(), 0, outputs=log)
        logs.append({name: float(value.detach()) for name, value in log.items()})
    return {"logs": logs, "tensors": {k: v.clone() for k, v in model.trainable_state_dict().items()}}


def plain(model: GroundingLMM, optimizer: GroupedAdamW) -> Callable[[list[Sample]], dict]:
    """MMEngine's training step, DDP where there are several processes."""
    wrapped = MMDistributedDataParallel(model) if get_world_size() > 1 else model
    wrapper = OptimWrapper(optimizer)
    return lambda samples: wrapped.train_step({"samples": samples}, wrapper)


def zero2(model: GroundingLMM, optimizer: GroupedAdamW) -> Callable[[list[Sample]], dict]:
    """DeepSpeed's training step as MMEngine takes it, with the guard of DeepSpeedHook."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, for minutes
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    model.same_groups = True
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(ZERO2))

    def step(samples: list[Sample]) -> dict:
        total, log = model.parse_losses(engine(samples=samples, mode="loss"))
        engine.backward(total)
        with torch.no_grad():
            engine.step()
        return log

    return step


def main(folder: Path) -> None:
    """All cases with both engines."""
    torch.set_num_threads(1)
    start_gloo()
    for case in CASES:
        for engine in (plain, zero2):
            try:
                found = train(case, engine)
            except RunError as error:
                found = {"error": str(error)}
            torch.save(found, folder / f"{case}_{engine.__name__}_{get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
