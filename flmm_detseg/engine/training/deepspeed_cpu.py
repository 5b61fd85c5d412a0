"""Several processes, and DeepSpeed, on machines without a GPU: gloo, no CUDA calls. For tests and small experiments."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
from mmengine._strategy import DeepSpeedStrategy
from torch import nn

from flmm_detseg.registry import STRATEGIES


def set_single_process_environment() -> None:
    """Sets what a launcher would set for a single process; without it DeepSpeed looks for MPI."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def start_gloo() -> None:
    """Joins the process group on gloo; MMEngine, which would call ``torch.cuda.set_device``, then leaves it alone."""
    if not torch.distributed.is_initialized():
        set_single_process_environment()
        torch.distributed.init_process_group("gloo")


@STRATEGIES.register_module()
class GlooDeepSpeedStrategy(DeepSpeedStrategy):
    """MMEngine's strategy on the gloo backend.

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

    def _setup_distributed(
        self, launcher: str | None = None, backend: str = "gloo", timeout: int | None = None
    ) -> None:
        start_gloo()

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        import deepspeed

        # A shared-memory operator that DeepSpeed would compile on first use, for minutes; gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        start_gloo()  # MMEngine sets nothing up for a single process, DeepSpeed needs it
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        return super()._wrap_model(model)
