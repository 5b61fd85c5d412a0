"""MMEngine's runner, for several processes of any launcher on any machine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flmm_detseg.engine.checks.config_check import resolve
from flmm_detseg.engine.training.deepspeed_cpu import start_gloo
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import RUNNERS


@RUNNERS.register_module()
class GroundingRunner(Runner):
    """``Runner`` whose processes need no GPU, and whose ``model_wrapper_cfg`` may name a class, as lazy configs do.

    XTuner builds it wherever a config has ``runner_type``, so ``xtuner train``, ``tools/train.py`` and every launcher
    go through here. The arguments are those of MMEngine's runner.
    """

    def setup_env(self, env_cfg: Mapping[str, Any]) -> None:
        """Joins the processes, on gloo where there is no GPU to name (MMEngine would name one)."""
        if self.distributed and not torch.cuda.is_available():
            start_gloo()
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: Mapping[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wraps the model for several processes.

        Args:
            model_wrapper_cfg: ``dict(type=..., ...)``, the type a class, its dotted name or a registered name; None for
                MMEngine's default.
            model: The model.

        Returns:
            The wrapper on the run's device, or the model itself for one process.

        Raises:
            ConfigError: The type cannot be found.
        """
        if not self.distributed:
            return super().wrap_model(None, model)
        unused = {"find_unused_parameters": self.cfg.get("find_unused_parameters", False)}
        wrapper = dict(model_wrapper_cfg or {"broadcast_buffers": False, **unused})
        kind = resolve(wrapper.pop("type", "MMDistributedDataParallel"), "`model_wrapper_cfg.type`")
        if not inspect.isclass(kind):
            raise ConfigError(f"`model_wrapper_cfg.type` is {kind!r}; a class that wraps a model is needed")
        if issubclass(kind, DistributedDataParallel) and not torch.cuda.is_available():
            wrapper["device_ids"] = None
        # MMEngine looks wrappers up by name; a dot in it would be a scope.
        name = f"{kind.__module__}.{kind.__qualname__}".replace(".", ":")
        MODEL_WRAPPERS.module_dict.setdefault(name, kind)
        return super().wrap_model({"type": name, **wrapper}, model)
