"""From the heads' losses to one objective, equal for one process, several, and DeepSpeed."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from flmm_detseg.errors import RunError
from flmm_detseg.models.balancer import TaskBalancer

# Of the names of the terms that are summed; everything else a model's `loss` gives is for the log.
OBJECTIVE = "objective."


@dataclass(frozen=True)
class StepTotals:
    """What a step holds, over all processes.

    Attributes:
        targets: Per head, targets of a process, the mean over processes.
        samples: Samples of a process, the mean over processes.
        head_samples: The same per head, of those that it reads.
        heads: Heads with samples in at least one process, in the order of the model: the same in all processes.
    """

    targets: Mapping[str, float]
    samples: float
    head_samples: Mapping[str, float]
    heads: tuple[str, ...]


def step_totals(
    targets: Mapping[str, float],
    groups: Sequence[tuple[str, ...]],
    sizes: Sequence[int],
    device: torch.device,
    *,
    same_groups: bool,
) -> StepTotals:
    """Adds up a step over the processes, in one exchange.

    Args:
        targets: Targets of this process for every head of the model.
        groups: Heads of each group of samples of this process.
        sizes: Samples of each group.
        device: Where processes exchange tensors.
        same_groups: All processes must hold the same groups.

    Returns:
        Means over the processes; the same in all of them.

    Raises:
        RunError: They do not; in all processes.
    """
    present = [float(any(name in group for group in groups)) for name in targets]
    read = [float(sum(size for group, size in zip(groups, sizes) if name in group)) for name in targets]
    digest = float(zlib.crc32(repr(groups).encode()) % 65521)
    values = [*targets.values(), *present, *read, float(sum(sizes)), digest, digest**2]
    if get_world_size() > 1:
        mean = torch.tensor(values, device=device, dtype=torch.float64)
        all_reduce(mean, op="mean")
        values = mean.tolist()
    count = len(targets)
    samples, digest, square = values[3 * count :]
    if same_groups and abs(square - digest**2) > 0.1:
        raise RunError(
            f"in this step the processes hold samples of different heads (this one: {list(groups)}); DeepSpeed would "
            "add up gradients of different parameters. Use TaskSampler (`one_task`, or `mixed` with TaskBatchSampler), "
            "with members whose records all have the same kinds of targets, or train without --deepspeed"
        )
    heads = tuple(name for name, value in zip(targets, values[count : 2 * count]) if value > 0)
    return StepTotals(
        dict(zip(targets, values)), samples, dict(zip(targets, values[2 * count : 3 * count])), heads
    )


def objective(
    losses: Mapping[str, Tensor],
    heads: Sequence[str],
    balancer: TaskBalancer | None,
    shared: Sequence[nn.Parameter],
    trainable: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """Everything a model's ``loss`` gives: terms to be summed, and figures without a graph.

    To be called inside ``forward``, so that DDP sees the balancer's parameters.

    Args:
        losses: ``HEAD.NAME`` and ``lmm.NAME``; those with ``loss`` in their names count.
        heads: Heads of :class:`StepTotals`. One that is absent in this process counts 0 here.
        balancer: None sums.
        shared: Trainable parameters that the heads share.
        trainable: All trainable parameters; the term ``objective.loss_reach`` gives each a gradient (0).

    Returns:
        Scalars by name: ``objective.loss_NAME`` are the terms to be summed; ``HEAD.NAME``, ``lmm.NAME`` and
        ``balancer.NAME`` are detached.
    """
    zero = torch.zeros((), device=trainable[0].device) if trainable else torch.zeros(())
    tasks = {name: sum(_parts(losses, name), start=zero) for name in heads}
    result = {key: value.detach().mean() for key, value in losses.items()}
    terms = tasks
    if balancer is not None:
        # Gradients and their products keep their precision: autocast is for the model alone.
        with torch.autocast(zero.device.type, enabled=False):
            terms, figures = balancer(tasks, shared)
        result.update({f"balancer.{k}": torch.tensor(v, device=zero.device) for k, v in figures.items()})
    result.update({f"{OBJECTIVE}loss_{name}": value for name, value in terms.items()})
    if own := _parts(losses, "lmm"):
        result[f"{OBJECTIVE}loss_lmm"] = cast(Tensor, sum(own))  # there is one at least
    if trainable:
        result[f"{OBJECTIVE}loss_reach"] = _Reach.apply(*trainable)
    return result


def parse_objective(losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the objective's terms, and what is logged: ``loss`` (the sum) and all that are no terms."""
    terms = [value for key, value in losses.items() if key.startswith(OBJECTIVE)]
    total = cast(Tensor, sum(terms))  # there is one at least
    figures = {key: value for key, value in losses.items() if not key.startswith(OBJECTIVE)}
    return total, {"loss": total, **figures}


def _parts(losses: Mapping[str, Tensor], name: str) -> Collection[Tensor]:
    return [value for key, value in losses.items() if key.startswith(f"{name}.") and "loss" in key]


class _Reach(torch.autograd.Function):
    """The number 0, whose gradient on every parameter is 0.

    A head without samples in a step then has gradient 0 and not none. ZeRO takes none for 0 (moments and weight decay
    go on), plain AdamW skips the parameter: with it, plain training, DDP and ZeRO are the same optimizer. Parameters
    are not read, and no kernel runs in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.facts = [(p.shape, p.dtype, p.device) for p in parameters]
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        found = []
        for shape, dtype, device in ctx.facts:
            if shape.numel() == 1:  # autograd may keep it as it is: no storage may be shared
                found.append(torch.zeros(shape, dtype=dtype, device=device))
                continue
            if (dtype, device) not in zeros:
                zeros[dtype, device] = torch.zeros((), dtype=dtype, device=device)
            found.append(zeros[dtype, device].expand(shape))
        return tuple(found)
