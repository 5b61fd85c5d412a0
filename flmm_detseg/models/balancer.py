"""Several tasks, one objective: weights of the losses and agreement of their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import LMMStates

GRADIENT_METHODS = ("sum", "pcgrad")


class Weighting(nn.Module):
    """Weights of the tasks' losses. The base class keeps them as they are given.

    Args:
        weights: Factor per task; tasks left out count 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.fixed = dict(weights or {})

    def setup(self, tasks: Sequence[str]) -> None:
        """Called once by the model with the names of its heads.

        Args:
            tasks: Names of the heads.

        Raises:
            ConfigError: A weight names no head, or is negative.
        """
        for name, value in self.fixed.items():
            if name not in tasks:
                raise ConfigError(f"weights: {name!r} is none of the heads {', '.join(tasks)}")
            if value < 0:
                raise ConfigError(f"weights: {name!r} is {value}; a weight must not be negative")

    def order(self, tasks: Sequence[str]) -> None:
        """Reorders what is stored by task, before a checkpoint with another order of the same tasks is read."""

    def forward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor]) -> dict[str, Tensor]:
        """Weighted losses.

        Args:
            losses: Loss per task present in the batch of any process; the same tasks, in the same order, in all
                processes (0 where this one has none).
            shared: Parameters all tasks share (of the adapted LMM).

        Returns:
            Per task the term of the objective; further terms may be added under names of their own.
        """
        del shared
        return {name: self.fixed.get(name, 1.0) * loss for name, loss in losses.items()}

    def statistics(self) -> dict[str, float]:
        """Current weights, for the log."""
        return {}


@MODELS.register_module()
class FixedWeighting(Weighting):
    """The weights of the config, all along.

    Args:
        weights: Factor per task; tasks left out count 1.
    """


@MODELS.register_module()
class UncertaintyWeighting(Weighting):
    """Weights learned as the tasks' uncertainties: ``exp(-s) L + s / 2``, half of the first term for regressions.

    The parameters ``log_variance.TASK`` must not decay; :class:`~flmm_detseg.engine.GroupedAdamW` sees to it.

    Args:
        weights: Fixed factors on top.
        regression: Tasks whose loss is a regression's.
        limit: ``s`` is clamped to [-limit, limit]: no task is switched off permanently.

    Source: Kendall et al., arXiv 1705.07115, section 3.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        regression: Sequence[str] = (),
        limit: float = 3.0,
    ) -> None:
        super().__init__(weights)
        self.regression = frozenset(regression)
        self.limit = limit
        self.log_variance = nn.ParameterDict()

    def setup(self, tasks: Sequence[str]) -> None:
        """See the base class."""
        super().setup(tasks)
        if unknown := self.regression - set(tasks):
            raise ConfigError(f"regression: {sorted(unknown)} are none of the heads {', '.join(tasks)}")
        for name in tasks:
            self.log_variance[name] = nn.Parameter(torch.zeros(()))

    def order(self, tasks: Sequence[str]) -> None:
        """See the base class."""
        self.log_variance = nn.ParameterDict(
            [(name, self.log_variance[name]) for name in tasks]
        )  # it sorts a dict

    def forward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor]) -> dict[str, Tensor]:
        """See the base class."""
        terms = {}
        for name, loss in super().forward(losses, shared).items():
            s = _Bounded.apply(self.log_variance[name], self.limit)
            factor = 0.5 if name in self.regression else 1.0
            terms[name] = factor * torch.exp(-s) * loss + 0.5 * s
        return terms

    def statistics(self) -> dict[str, float]:
        """``exp(-s)`` per task, as used."""
        return {
            f"weight_{name}": math.exp(-min(max(float(s.detach()), -self.limit), self.limit))
            for name, s in self.log_variance.items()
        }


class _Bounded(torch.autograd.Function):
    """Clamps to [-limit, limit]; outside, a gradient that leads back in still passes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.limit = limit
        return value.clamp(-limit, limit)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        outwards = ((value > ctx.limit) & (gradient < 0)) | ((value < -ctx.limit) & (gradient > 0))
        return gradient.masked_fill(outwards, 0.0), None


@MODELS.register_module()
class GradNormWeighting(Weighting):
    """Weights that let every task train at a similar rate.

    ``w = T softmax(v)``; v is trained by ``sum_i |w_i n_i - mean(w n) r_i^alpha|`` with ``n_i`` the norm of the
    task's gradient on the shared parameters and ``r_i`` its relative inverse training rate, both constants to it. The
    gradient reaches v alone. The softmax takes the place of the paper's renormalisation to a sum of T. v must not
    decay; :class:`~flmm_detseg.engine.GroupedAdamW` sees to it. A task whose first loss has not been seen is weighted
    by its current w and sets the reference.

    Args:
        weights: Fixed factors on top.
        alpha: Strength of the pull to equal rates.

    Source: Chen et al., GradNorm, arXiv 1711.02257, section 3.
    """

    checkpoint_buffers = ("first_losses",)
    first_losses: Tensor

    def __init__(self, weights: Mapping[str, float] | None = None, alpha: float = 1.5) -> None:
        super().__init__(weights)
        self.alpha = alpha
        self.names: tuple[str, ...] = ()

    def setup(self, tasks: Sequence[str]) -> None:
        """See the base class."""
        super().setup(tasks)
        self.names = tuple(tasks)
        self.logits = nn.Parameter(torch.zeros(len(tasks)))
        # First loss per task, 0 before it was seen. Not a parameter: ZeRO writes its own copy over those.
        self.register_buffer("first_losses", torch.zeros(len(tasks)))

    def order(self, tasks: Sequence[str]) -> None:
        """See the base class; the vectors of a run that has begun move along."""
        places = [self.names.index(name) for name in tasks]
        with torch.no_grad():
            for vector in (self.logits, self.first_losses):
                vector.copy_(vector[places].clone())
        self.names = tuple(tasks)

    def forward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor]) -> dict[str, Tensor]:
        """See the base class; adds the term ``gradnorm``."""
        scaled = super().forward(losses, shared)
        places = [self.names.index(name) for name in scaled]
        values = mean_over_processes(torch.stack([loss.detach().float() for loss in scaled.values()]))
        first = self.first_losses
        new = (first[places] == 0) & values.isfinite()  # such a step is left out; this buffer would keep it
        first[places] = torch.where(new, values.to(first), first[places])
        weights = len(self.names) * self.logits.softmax(0)
        terms = {name: weights[place].detach() * scaled[name] for name, place in zip(scaled, places)}
        if len(places) > 1 and shared:
            gradients = [flat_gradient(loss, shared) for loss in scaled.values()]
            norms = torch.stack([mean_over_processes(gradient).norm() for gradient in gradients])
            rates = values / first[places].clamp(min=1e-12)
            own = weights[places] * norms.to(weights)
            target = own.mean().detach() * (rates / rates.mean().clamp(min=1e-12)) ** self.alpha
            terms["gradnorm"] = (own - target).abs().sum()
        return terms

    def statistics(self) -> dict[str, float]:
        """``w`` per task."""
        weights = (len(self.names) * self.logits.detach().softmax(0)).tolist()
        return {f"weight_{name}": value for name, value in zip(self.names, weights)}


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gate: GradientGate) -> Tensor:
        ctx.gate = gate
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.gate.scale, None


class GradientGate:
    """Scales the gradient that passes from a head to the LMM; the head's own gradient is unchanged.

    The scale is read when the gradient passes, so it can be set after the forward pass: combining the tasks'
    gradients on shared parameters with any coefficients needs no second way of writing gradients, and works
    under gradient accumulation, DDP and ZeRO.
    """

    def __init__(self) -> None:
        self.scale = 1.0

    def states(self, states: LMMStates) -> LMMStates:
        """The states after the gate."""

        def gate(tensor: Tensor) -> Tensor:
            return _Scale.apply(tensor, self) if tensor.requires_grad else tensor

        return LMMStates(
            attention=states.attention and [gate(item) for item in states.attention],
            hidden=states.hidden and [replace(item, states=gate(item.states)) for item in states.hidden],
            vision=states.vision and [{k: gate(v) for k, v in maps.items()} for maps in states.vision],
            logits=states.logits and [gate(item) for item in states.logits],
            logits_start=states.logits_start,
            base_logits=states.base_logits,
            added_ids=states.added_ids,
            answer=states.answer and [gate(item) for item in states.answer],
            likelihood=states.likelihood,
        )


@MODELS.register_module()
class TaskBalancer(nn.Module):
    """The objective of several heads.

    Args:
        weighting: Weights of the losses.
        gradients: ``"sum"``, or ``"pcgrad"``: where two tasks' gradients on the shared parameters point against each
            other, each loses its part along the other. Needs the tasks in one batch, and one more backward pass
            each. Conflicts are those of the micro-batch, over all processes.
        seed: Of the random order in which PCGrad takes the tasks: a function of seed and number of steps so far, which
            checkpoints hold.

    Raises:
        ConfigError: There is no such way to combine gradients.

    Source: Yu et al., Gradient Surgery, arXiv 2001.06782, algorithm 1.
    """

    num_steps: Tensor

    def __init__(self, weighting: Weighting | None = None, gradients: str = "sum", seed: int = 0) -> None:
        super().__init__()
        if gradients not in GRADIENT_METHODS:
            raise ConfigError(f"gradients {gradients!r} is none of {', '.join(GRADIENT_METHODS)}")
        self.weighting = weighting or Weighting()
        self.gradients = gradients
        self.seed = seed
        self.checkpoint_buffers: tuple[str, ...] = ()
        if gradients == "pcgrad":
            self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
            self.checkpoint_buffers = ("num_steps",)
        self._gates: dict[str, GradientGate] = {}

    def setup(self, tasks: Sequence[str]) -> None:
        """Called once by the model with the names of its heads."""
        self.weighting.setup(tasks)
        self._gates = {name: GradientGate() for name in tasks}

    def gate(self, task: str, states: LMMStates) -> LMMStates:
        """States for a head."""
        return self._gates[task].states(states) if self.gradients == "pcgrad" else states

    def forward(
        self, losses: Mapping[str, Tensor], shared: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms of the objective (to be summed), and figures for the log.

        Args:
            losses: See :meth:`Weighting.forward`.
            shared: Trainable parameters of the LMM.

        Returns:
            Scalars by name: one term for each task of ``losses``, and what the weighting adds (``gradnorm``); floats by
            name: weights, and the factors of PCGrad where it was applied.
        """
        for gate in self._gates.values():  # before any gradient is taken: the last step's are still set
            gate.scale = 1.0
        terms = self.weighting(losses, shared)
        figures = self.weighting.statistics()
        tasks = list(losses)
        if self.gradients == "pcgrad" and len(tasks) > 1 and shared:
            gradients = [mean_over_processes(flat_gradient(terms[name], shared)) for name in tasks]
            gram = torch.stack([torch.stack([a @ b for b in gradients]) for a in gradients]).double().cpu()
            scales = pcgrad_coefficients(gram, order_generator(self.seed, int(self.num_steps)))
            self.num_steps += 1
            for name, scale in zip(tasks, scales.tolist()):
                self._gates[name].scale = scale
                figures[f"pcgrad_{name}"] = scale
        return terms, figures


def order_generator(seed: int, step: int) -> torch.Generator:
    """Source of PCGrad's order of a step, the same in every process."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def pcgrad_coefficients(gram: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """PCGrad from inner products alone.

    Every projected gradient is a combination of the tasks' gradients, so is their sum.

    Args:
        gram: float ``[T, T]``, inner products of the tasks' gradients.
        generator: Of the random order of the projections.

    Returns:
        ``[T]``: the sum of the projected gradients is ``sum_k c_k g_k``.
    """
    count = len(gram)
    total = torch.zeros(count, dtype=gram.dtype)
    for task in range(count):
        own = torch.zeros(count, dtype=gram.dtype)
        own[task] = 1.0
        for other in torch.randperm(count, generator=generator).tolist():
            dot = own @ gram[:, other]
            if other != task and dot < 0:
                own[other] -= dot / gram[other, other]
        total += own
    return total


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of a loss on parameters as one float32 vector; zero where they are not reached. Keeps the graph."""
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), device=loss.device)
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.detach().float().reshape(-1) for part in parts])


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of a tensor over the processes (a copy)."""
    if get_world_size() == 1:
        return tensor
    tensor = tensor.clone()
    all_reduce(tensor, op="mean")
    return tensor
