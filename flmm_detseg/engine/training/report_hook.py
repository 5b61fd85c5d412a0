"""What is trained and how fast: parameters, memory and learning rates per part, in the log."""

from __future__ import annotations

from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from flmm_detseg.cache.own_tensors import log_part_reports
from flmm_detseg.engine.checks.class_check import check_classes
from flmm_detseg.engine.training.optimizer import REST
from flmm_detseg.engine.training.start import unwrap
from flmm_detseg.lmms.weights.parameters import format_report, parameter_report
from flmm_detseg.registry import HOOKS

# Where the number of trainable values stays, for the figures of a training.
TRAINABLE_INFO = "trainable_parameters"


@HOOKS.register_module()
class ParameterReportHook(Hook):
    """Logs trainable parameters and memory per part before training, and the learning rate of every group always; of a
    :class:`~flmm_detseg.cache.cached_lmm.CachedLMM` also what its parts begin with, by checksum.

    The learning rates are logged as ``GROUP_lr`` (groups of
    :class:`~flmm_detseg.engine.training.optimizer.GroupedAdamW`), read from the optimizer that really steps (under
    DeepSpeed: its own).
    """

    # Before the logger, which writes what is there.
    priority = "NORMAL"

    def before_train(self, runner: Runner) -> None:
        """See the class; also compares the classes of heads and data.

        Args:
            runner: The run.

        Raises:
            ConfigError: They differ.
        """
        check_classes(unwrap(runner.model), runner.train_dataloader.dataset)
        self._report(runner)

    @master_only
    def _report(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        report = parameter_report(model)
        runner.logger.info("\n" + format_report(report))
        log_part_reports(model, runner.logger)
        runner.message_hub.update_info(TRAINABLE_INFO, report.trainable)
        for name, group in _groups(runner).items():
            runner.logger.info(
                f"Optimizer group {name}: lr {group['lr']:.3e}, weight decay {group['weight_decay']:.3e}"
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Learning rates of this step."""
        groups = _groups(runner)
        if len(groups) > 1:
            for name, group in groups.items():
                # MMEngine prints what ends in `lr` as 1.0e-05 rather than 0.0000.
                runner.message_hub.update_scalar(f"train/{name.strip('._')}_lr", group["lr"])


def _groups(runner: Runner) -> dict[str, dict[str, Any]]:
    groups = runner.optim_wrapper.optimizer.param_groups
    return {group.get("group_name", REST if i == 0 else f"group{i}"): group for i, group in enumerate(groups)}
