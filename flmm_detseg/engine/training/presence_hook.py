"""Calibrates a presence head at the end of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from flmm_detseg.engine.training.start import unwrap
from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.heads import Head, require_head
from flmm_detseg.heads.presence_score import PresenceScore
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.registry import DATASETS, HOOKS, SCOPE

TASKS = ("phrase", "reasoning")


@HOOKS.register_module()
class PresenceCalibrationHook(Hook):
    """Fits temperature, bias and threshold of a presence head on phrases (or questions) that were not trained on, after
    the last iteration and before its checkpoint is written.

    Every process does the whole of it, so that all hold the same numbers.

    Args:
        dataset: Samples of the task, some of them of what is not there; a data set or its config.
        batch_size: Samples of a call.
        max_samples: Most samples that are read, spread evenly; None: all.
        task: Whose head: ``"phrase"``, or ``"reasoning"`` (mask tokens).

    Raises:
        ConfigError: A number is below 1, or the task is another.
    """

    # Before the checkpoint hook, which is VERY_LOW.
    priority = "LOW"

    def __init__(
        self,
        dataset: Mapping[str, Any] | Any,
        batch_size: int = 16,
        max_samples: int | None = None,
        task: str = "phrase",
    ) -> None:
        if task not in TASKS:
            raise ConfigError(f"PresenceCalibrationHook: `task` is {task!r}; allowed: {', '.join(TASKS)}")
        for name, value in (("batch_size", batch_size), ("max_samples", max_samples)):
            if value is not None and value < 1:
                raise ConfigError(f"PresenceCalibrationHook: `{name}` is {value}; at least 1 is needed")
        self.dataset: Any = dataset
        self.batch_size, self.max_samples, self.task = batch_size, max_samples, task

    def before_train(self, runner: Runner) -> None:
        """Finds out now, not after the training, whether the model and the data can be used.

        Args:
            runner: The run.

        Raises:
            ConfigError: The head has no presence head.
            DataError: The data cannot be read.
        """
        self._presence_of(unwrap(runner.model))
        if isinstance(self.dataset, Mapping):
            self.dataset = DATASETS.build({"_scope_": SCOPE, **self.dataset})

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Calibrates after the last iteration; leaves the model in training mode.

        A head that learned nothing is a warning, so that the run's checkpoint is written.

        Args:
            runner: The run.
            batch_idx: See MMEngine's ``Hook``.
            data_batch: See there.
            outputs: See there.
        """
        if not self.is_last_train_iter(runner):
            return
        model = unwrap(runner.model)
        was_training = model.training
        model.eval()
        try:
            count = self.calibrate(model)
        except RunError as error:
            runner.logger.warning(f"Presence is not calibrated: {error}")
            return
        finally:
            model.train(was_training)
        presence = self._presence_of(model)[1]
        runner.logger.info(
            f"Presence calibrated on {count} cases ({self.task}): temperature {float(presence.temperature):.3f}, bias "
            f"{float(presence.bias):.3f}, threshold {float(presence.threshold):.3f}"
        )

    @torch.no_grad()
    def calibrate(self, model: GroundingLMM) -> int:
        """Calibrates a model in eval mode.

        Args:
            model: Its head of the task has a presence head, which is changed.

        Returns:
            How many phrases (or questions) were looked at.

        Raises:
            ConfigError: It has none.
            DataError: All are there, or none is.
            RunError: Nothing was learned.
        """
        head, presence = self._presence_of(model)
        total = len(self.dataset)
        count = min(total, self.max_samples or total)
        chosen = [index * total // count for index in range(count)]
        logits, there = [], []
        for start in range(0, count, self.batch_size):
            samples = [self.dataset[index] for index in chosen[start : start + self.batch_size]]
            logits += model.presence_logits(self.task, samples)
            there += [head.is_there(sample) for sample in samples]
        found = torch.cat(logits)
        presence.calibrate(found, torch.cat(there).to(found.device))
        return len(found)

    def _presence_of(self, model: GroundingLMM) -> tuple[Head[Any], PresenceScore]:
        head = require_head(model.heads, self.task)
        if head.presence_score is None:
            kind = "PresenceHead" if self.task == "phrase" else "AnswerPresenceHead"
            raise ConfigError(
                f"PresenceCalibrationHook needs a {self.task} head with a presence head: "
                f"model.heads.NAME.presence = dict(type={kind}, ...)"
            )
        return head, head.presence_score
