"""The training loop: XTuner's, which continues after an interruption as if there had been none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader
from xtuner.engine.runner import TrainLoop

from flmm_detseg.datasets import EpochSampler, ImageMix, ImageSampler
from flmm_detseg.engine.checks.config_check import check_config, check_machine
from flmm_detseg.engine.training.finite_steps import FiniteSteps
from flmm_detseg.engine.training.start import (
    LOCK,
    batch_figures,
    batch_sampler_of,
    prepare_start,
    unwrap,
    uses_deepspeed,
)
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import LOOPS
from flmm_detseg.utils.lock import hold


@LOOPS.register_module()
class ResumableTrainLoop(TrainLoop):
    """XTuner's iteration-based ``TrainLoop`` whose data position survives a restart.

    A resumed run gets exactly the batches that the interrupted one would have got, without reading the ones it had.

    Args:
        runner: The run.
        dataloader: Training data, or its config.
        max_iters: Iterations to train; either this or ``max_epochs``.
        max_epochs: Passes over the data to train; may be a fraction.
        val_begin: First iteration that may be followed by a validation.
        val_interval: Iterations between validations; the last iteration is always followed by one.
        non_finite: What to do with a step whose loss or gradient holds NaN or infinities: ``"stop"`` ends the run
            with an error before the step, ``"skip"`` leaves the step out.
        max_skips: Steps left out in a row after which the run ends all the same.

    Raises:
        ConfigError: The config has a key that nothing reads, neither or both of ``max_iters`` and ``max_epochs``, a
            sampler whose position cannot be set, or a policy that is none.
        CheckpointError: What to start or to go on from cannot be used.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader[Any] | dict[str, Any],
        max_iters: int | None = None,
        max_epochs: float | None = None,
        val_begin: int = 1,
        val_interval: int = 1000,
        non_finite: str = "stop",
        max_skips: int = 20,
    ) -> None:
        # Also where `xtuner train` is called directly. The strategy is built by now, and XTuner's own has an argument
        # that its signature does not show.
        check_config(runner.cfg, str(runner.cfg.filename), skip=("strategy",))
        check_machine(runner.cfg, str(runner.cfg.filename))
        for hook in runner.hooks:
            if type(hook) is CheckpointHook:  # MMEngine's default, where `default_hooks` names none
                raise ConfigError(
                    "`default_hooks.checkpoint` is missing; give a GroundingCheckpointHook, or None"
                )
        if (max_iters is None) == (max_epochs is None):
            raise ConfigError("`train_cfg` needs either `max_iters` or `max_epochs`")
        # A data loader draws from torch's generator. MMEngine's two runners build the model before and after this
        # point; either way its first weights must follow from the seed alone.
        with torch.random.fork_rng(devices=[]):
            super().__init__(
                runner,
                dataloader,
                max_iters=max_iters,
                max_epochs=max_epochs,
                val_begin=val_begin,
                val_interval=val_interval,
            )
        sampler = self.dataloader.batch_sampler.sampler
        if not isinstance(sampler, EpochSampler):
            raise ConfigError(
                f"`train_dataloader.sampler` is a {type(sampler).__name__}; use EpochSampler or TaskSampler, "
                "whose position a resumed run can take up"
            )
        check_image_batches(self.dataloader)
        self._steps = FiniteSteps(runner, non_finite, max_skips)
        if non_finite == "skip" and uses_deepspeed(runner):
            if batch_figures(runner, self.dataloader)["accumulation"] > 1:
                raise ConfigError(
                    "`train_cfg.non_finite`='skip' needs `accumulative_counts`=1 with DeepSpeed: what its engine has "
                    "accumulated cannot be taken back. Use 'stop', or train without --deepspeed"
                )
        prepare_start(runner, self.dataloader, self.max_iters)

    def run_iter(self, data_batch: Mapping[str, Any]) -> None:
        """One iteration; hooks see no figures of a step that was left out.

        Args:
            data_batch: What the model's ``train_step`` takes.

        Raises:
            RunError: See :class:`~flmm_detseg.engine.training.finite_steps.FiniteSteps`.
        """
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs = self._steps.run(data_batch)
        self.runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def run(self) -> Any:
        """Trains to the last iteration; returns the model.

        Returns:
            The trained model, in its wrapper where it has one.

        Raises:
            ConfigError: Nothing of the model is trained, or what is kept as it is is still random.
            RunError: Another training writes to the same work folder.
        """
        if is_main_process():
            hold(Path(self.runner.work_dir) / LOCK, f"training in {self.runner.work_dir}")
        check_trainable(self.runner.model)
        check_loaded(self.runner)
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader_iterator = endless(self.dataloader, self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            validate = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if self.runner.val_loop is not None and self._iter >= self.val_begin and validate:
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


def check_trainable(model: nn.Module) -> None:
    """Makes sure that there is something to train.

    Args:
        model: Of the run.

    Raises:
        ConfigError: No parameter has a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "nothing of this model is trained (`model`: the LMM is frozen and the heads have no weights that learn); "
            "evaluate it as it is, for example: flmm-detseg evaluate refcoco CONFIG"
        )


def check_loaded(runner: Runner) -> None:
    """Makes sure that what a run keeps as it is came from somewhere.

    Args:
        runner: The run, about to train.

    Raises:
        ConfigError: Parameters are frozen that no file has given.
    """
    if runner._resume and runner._load_from is not None:
        return  # the checkpoint holds them, or would have been refused
    names = sorted(unwrap(runner.model).unloaded)
    if names:
        raise ConfigError(
            f"{len(names)} parameters are kept as they are (`model.freeze`, `train_lmm`=False or `head_lora`), and no "
            f"file has given them: they are random ({', '.join(names[:3])}, ...). Name the checkpoint that holds them "
            "(--cfg-options 'model.init_from=[FILE]', or load_from=FILE), or train them"
        )


def check_image_batches(loader: DataLoader[Any]) -> None:
    """Checks that batches of an :class:`~flmm_detseg.datasets.ImageMix` keep the records of an image together.

    Args:
        loader: Of the training data.

    Raises:
        ConfigError: Another sampler than :class:`~flmm_detseg.datasets.ImageSampler`, or a batch size that is no
            multiple of ``per_image``.
    """
    if not isinstance(loader.dataset, ImageMix):
        return
    batches = batch_sampler_of(loader)
    sampler, size = batches.sampler, batches.batch_size
    if not isinstance(sampler, ImageSampler):
        raise ConfigError(
            f"`train_dataloader.sampler` is a {type(sampler).__name__}, which separates the records of an image; use "
            "ImageSampler"
        )
    if size % sampler.per_image:
        raise ConfigError(
            f"`train_dataloader.batch_size` is {size}, which splits images; give a multiple of `per_image` "
            f"({sampler.per_image})"
        )


def endless(loader: DataLoader[Any], start: int) -> Iterator[Any]:
    """Batches of epoch after epoch, from a batch number on.

    Args:
        loader: With an :class:`~flmm_detseg.datasets.EpochSampler`, maybe inside a batch sampler.
        start: Number of the first batch, counted from the first epoch's first.

    Yields:
        Batches as the loader makes them.
    """
    epoch, skipped = divmod(start, len(loader))
    while True:
        # Of the batch sampler: with one of our own, the loader's `sampler` is a placeholder that nothing reads.
        batches = batch_sampler_of(loader)
        batches.sampler.set_epoch(epoch, start=skipped * batches.batch_size)
        yield from loader
        epoch, skipped = epoch + 1, 0
