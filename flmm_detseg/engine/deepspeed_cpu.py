"""DeepSpeed on machines without a GPU: gloo processes, no CUDA calls. For tests and small experiments."""

from __future__ import annotations

import os
from typing import Any

import deepspeed
import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine.optim import DeepSpeedOptimWrapper

from flmm_detseg.registry import OPTIM_WRAPPERS, STRATEGIES

_SINGLE_PROCESS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29531",
}


@STRATEGIES.register_module()
class GlooDeepSpeedStrategy(DeepSpeedStrategy):
    """MMEngine's strategy on the gloo backend.

    MMEngine's own calls ``torch.cuda.set_device``; DeepSpeed's own looks for MPI. Both are avoided here.

    Args:
        config: DeepSpeed's options (every ``enabled`` explicit: "auto" asks the GPU).
        gradient_clipping: Largest gradient norm.
        train_micro_batch_size_per_gpu: Samples per process and step.
        gradient_accumulation_steps: Steps per update.
        exclude_frozen_parameters: Leave frozen parameters out of checkpoints.
        work_dir: Folder of the run.
        experiment_name: Name of the run.
        env_kwargs: MMEngine's environment options.
        log_kwargs: MMEngine's log options.
        auto_scale_lr: MMEngine's option, unused here.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        gradient_clipping: float = 1.0,
        train_micro_batch_size_per_gpu: int = 1,
        gradient_accumulation_steps: int = 1,
        exclude_frozen_parameters: bool = True,
        work_dir: str = "work_dirs",
        experiment_name: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        log_kwargs: dict[str, Any] | None = None,
        auto_scale_lr: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            config=dict(config),
            gradient_clipping=gradient_clipping,
            train_micro_batch_size_per_gpu=train_micro_batch_size_per_gpu,
            gradient_accumulation_steps=gradient_accumulation_steps,
            exclude_frozen_parameters=exclude_frozen_parameters,
            work_dir=work_dir,
            experiment_name=experiment_name,
            env_kwargs=env_kwargs,
            log_kwargs=log_kwargs,
            auto_scale_lr=auto_scale_lr,
        )

    def _setup_distributed(  # type: ignore[override]
        self, launcher: str | None = None, backend: str = "gloo", timeout: int | None = None
    ) -> None:
        for name, value in _SINGLE_PROCESS.items():
            os.environ.setdefault(name, value)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


@OPTIM_WRAPPERS.register_module()
class NoGradDeepSpeedOptimWrapper(DeepSpeedOptimWrapper):
    """MMEngine's wrapper whose step runs outside autograd.

    DeepSpeed writes the updated flat buffer through views; with autograd on, torch >= 2.9 refuses ("Output 0 of
    SplitBackward0 is a view").

    Args:
        optimizer: Built by MMEngine from the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)

    def step(self) -> None:  # type: ignore[override]
        """One DeepSpeed step (zeroes gradients itself)."""
        with torch.no_grad():
            self.model.step()
