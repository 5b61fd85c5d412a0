"""No optimizer step from NaN or infinities: a run stops before it, or leaves the step out and counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from flmm_detseg.engine.training.resume import state_tensors
from flmm_detseg.engine.training.start import last_checkpoint, unwrap
from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.utils.finite import is_finite, not_finite

POLICIES = ("stop", "skip")
# Entry of the message hub: steps left out so far; checkpoints hold it.
SKIPPED = "skipped_steps"
_LISTED = 16


class FiniteSteps:
    """Wraps a run's optimizer wrapper and checks every loss and gradient before a parameter is changed.

    Where one process finds NaN or an infinity, all act as one. Steps that a loss scaler leaves out (float16's
    overflows) are left to it, until ``max_skips`` of them come in a row: then no scale helps.

    Args:
        runner: The run.
        policy: ``"stop"`` ends the run with an error before the step; ``"skip"`` leaves the step out, with all batches
            that are accumulated for it.
        max_skips: Steps left out in a row after which the run ends all the same.

    Raises:
        ConfigError: A setting is none of these.
    """

    def __init__(self, runner: Runner, policy: str = "stop", max_skips: int = 20) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"`train_cfg.non_finite` is {policy!r}; allowed: {', '.join(POLICIES)}")
        if isinstance(max_skips, bool) or not isinstance(max_skips, int) or max_skips < 1:
            raise ConfigError(f"`train_cfg.max_skips` is {max_skips!r}; it must be a whole number above 0")
        self._runner, self._policy, self._max_skips = runner, policy, max_skips
        self._records: list[str] = []
        self._in_a_row = 0
        self._broken = self._loss_fails = self._by_scaler = False
        self._gradients: list[str] = []

    def run(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """One ``train_step`` of the model on a batch.

        Args:
            batch: What the model's ``train_step`` takes.

        Returns:
            Figures to log; none where the batch leads to no step.

        Raises:
            RunError: Loss or gradient hold NaN or infinities and the policy is ``"stop"``, or it was so for
                ``max_skips`` steps in a row; names iteration, loss terms and records.
        """
        self._records += [str(sample.record_id) for sample in batch["samples"]]
        self._loss_fails, self._by_scaler, self._gradients = False, False, []
        outputs = self._runner.model.train_step(batch, optim_wrapper=self)
        if not (self._loss_fails or self._by_scaler or self._gradients):
            return outputs
        if self._by_scaler:
            if self._in_a_row >= self._max_skips:
                raise RunError(
                    f"iteration {self._runner.iter + 1}: the loss scaler left out {self._in_a_row} steps in a row, "
                    f"whose gradients overflow at any scale; {self._remedy()}"
                )
            return outputs
        text = self._describe(outputs)
        if self._policy == "stop":
            raise RunError(f"{text}. The optimizer did not step; {self._remedy()}")
        self._runner.logger.warning(f"{text}. This step is left out")
        if self._in_a_row >= self._max_skips:
            raise RunError(f"{text}. {self._in_a_row} steps in a row were left out; {self._remedy()}")
        return {}

    def optim_context(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See MMEngine's ``OptimWrapper``."""
        return self._runner.optim_wrapper.optim_context(model)

    def update_params(self, loss: Tensor) -> None:
        """Backward pass and, where it is due, the step; neither where the numbers do not allow it."""
        wrapper = self._runner.optim_wrapper
        self._loss_fails = not everywhere(is_finite(loss))
        if self._loss_fails and self._policy == "stop":
            return
        if isinstance(wrapper, DeepSpeedOptimWrapper):
            self._update_engine(wrapper, loss)
        elif type(wrapper).update_params is not OptimWrapper.update_params:
            wrapper.update_params(loss)  # a wrapper with a way of its own: the loss is all that can be seen
            self._stepped(True)
        else:
            self._broken |= self._loss_fails
            # A number without a graph: the wrapper goes on counting, and no gradient is touched.
            graph = torch.zeros_like(loss, requires_grad=True) if self._loss_fails else loss
            wrapper.backward(wrapper.scale_loss(graph))
            if wrapper.should_update():
                self._step(wrapper)
                wrapper.zero_grad()

    def _step(self, wrapper: OptimWrapper) -> None:
        parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
        gradients = {
            getattr(p, "flmm_name", str(i)): p.grad for i, p in enumerate(parameters) if p.grad is not None
        }
        largest = torch.nn.utils.get_total_norm(gradients.values(), float("inf"))  # NaN where one is NaN
        if not self._broken and not everywhere(is_finite(largest)):
            scaler = getattr(wrapper, "loss_scaler", None)
            if scaler is None or not scaler.is_enabled():
                self._gradients = not_finite(gradients) or ["those of another process"]
            else:
                self._by_scaler = True  # it leaves the step out, and lowers its scale
        if not self._broken and not self._gradients:
            wrapper.step()
        self._stepped(not (self._broken or self._gradients or self._by_scaler))

    def _update_engine(self, wrapper: DeepSpeedOptimWrapper, loss: Tensor) -> None:
        if self._loss_fails:
            self._stepped(False)
            return
        engine = wrapper.model.model
        if hasattr(engine.optimizer, "check_grad_overflow"):
            engine.optimizer.check_grad_overflow = True  # ZeRO looks at gradients by itself in float16 only
        skipped, due = engine.skipped_steps, engine.is_gradient_accumulation_boundary()
        wrapper.update_params(loss)
        if due:
            fine = engine.skipped_steps == skipped
            self._by_scaler = not fine and engine.fp16_enabled()
            if not fine and not self._by_scaler:
                self._gradients = ["a partition of DeepSpeed's"]
            self._stepped(fine)

    def _stepped(self, fine: bool) -> None:
        """The end of an accumulation."""
        self._in_a_row = 0 if fine else self._in_a_row + 1
        if not fine and not self._by_scaler:
            hub = self._runner.message_hub
            total = hub.runtime_info.get(SKIPPED, 0) + 1
            hub.update_info(SKIPPED, total)
            hub.update_scalar(f"train/{SKIPPED}", total)
        if fine or self._by_scaler:
            self._records.clear()
        self._broken = False

    def _describe(self, outputs: Mapping[str, Tensor]) -> str:
        figures = {name: value.detach() for name, value in outputs.items()}
        if self._loss_fails:
            terms = [f"{name} = {float(figures[name].float().mean())}" for name in not_finite(figures)]
            own = f"loss terms with NaN or infinities: {', '.join(terms)}" if terms else ""
        else:
            names = self._gradients[:_LISTED]
            own = f"a gradient holds NaN or infinities: {', '.join(names)} (loss = {float(figures['loss']):.6g})"
        if own:
            own += f"; records: {', '.join(self._records[:_LISTED])}"
            own += f" and {len(self._records) - _LISTED} more" if len(self._records) > _LISTED else ""
        self._records.clear()
        found = [own]
        if get_world_size() > 1:
            found = all_gather_object((f"process {get_rank()}: " if own else "") + own)
        return f"iteration {self._runner.iter + 1}: {'; '.join(filter(None, found))}"

    def _remedy(self) -> str:
        kept = f"the last checkpoint is {_last(self._runner) or 'none'}"
        other = "" if self._policy == "skip" else ", or leave such steps out: train_cfg.non_finite=skip"
        return f"{kept}. Look at these records, lower the learning rate, train in another precision{other}"


def everywhere(fine: bool) -> bool:
    """Whether something holds in all processes; the same answer in each."""
    if get_world_size() == 1:
        return fine
    flag = torch.tensor(float(fine))
    all_reduce(flag, op="min")
    return bool(flag)


def check_state(runner: Runner, name: str, optimizer: bool) -> None:
    """Checks all that a checkpoint would hold, before it is written.

    Args:
        runner: The run.
        name: Of the checkpoint, for the error.
        optimizer: The optimizer's state is part of it.

    Raises:
        RunError: A tensor holds NaN or infinities; in all processes.
    """
    broken = not_finite(unwrap(runner.model).trainable_state_dict())
    if optimizer:
        broken += not_finite(state_tensors(runner.optim_wrapper.optimizer))
    if not everywhere(not broken):
        raise RunError(
            f"{name} was not written: it would hold NaN or infinities: {_listed(broken)}. Earlier checkpoints are "
            f"kept (last: {_last(runner) or 'none'}); go on from one with a lower learning rate or in another precision"
        )


def _last(runner: Runner) -> Path | None:
    with suppress(CheckpointError):
        return last_checkpoint(Path(runner.work_dir))
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "those of another process") + more
