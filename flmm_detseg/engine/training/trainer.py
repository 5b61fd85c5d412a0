"""Training by XTuner in this process, so that the caller sees a failure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_rank
from mmengine.logging import MessageHub

from flmm_detseg.engine.checks.config_check import check_config, check_machine, parse_overrides
from flmm_detseg.engine.training.checkpoint_hook import LMM_INFO
from flmm_detseg.engine.training.deepspeed_cpu import set_single_process_environment
from flmm_detseg.engine.training.finite_steps import SKIPPED
from flmm_detseg.engine.training.report_hook import TRAINABLE_INFO
from flmm_detseg.engine.training.runner import GroundingRunner
from flmm_detseg.engine.training.start import LOCK, last_checkpoint, read_run_state
from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.models.checkpoint import load_checkpoint, states_file
from flmm_detseg.models.from_config import read_config
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.lock import holding
from flmm_detseg.utils.paths import find


@dataclass(frozen=True)
class TrainOptions:
    """Arguments of ``xtuner train``, and where they differ from it.

    Attributes:
        config: Config file.
        work_dir: Folder of the run; None takes the config's, else ``work_dirs/<config name>``.
        resume: Checkpoint to go on from, ``"auto"`` for the last one of the work folder (from the beginning where
            there is none), None to start from the beginning.
        cfg_options: ``key=value`` overrides.
        seed: Random seed.
        deepspeed: Name or JSON file of a DeepSpeed configuration.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """

    config: str
    work_dir: str | None = None
    resume: str | None = None
    cfg_options: tuple[str, ...] = ()
    seed: int | None = None
    deepspeed: str | None = None
    launcher: str = "none"


def default_launcher() -> str:
    """``pytorch`` where torchrun or accelerate started several processes, which would be runs of their own, else
    ``none``.
    """
    return "pytorch" if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" in os.environ else "none"


def train(options: TrainOptions) -> dict[str, Any] | None:
    """Trains as ``xtuner train`` does.

    On a machine without a GPU, ``deepspeed`` runs on gloo: the strategy of
    :mod:`flmm_detseg.engine.training.deepspeed_cpu` takes the place of XTuner's.

    Args:
        options: Config, work folder, launcher and what to go on from.

    Returns:
        ``work_dir``, ``checkpoint``, ``iterations``, ``losses`` (last logged), ``lmm_sha256_before`` and
        ``lmm_sha256_after`` (of the frozen part, from ``FrozenGuardHook``; None without it), ``skipped_steps``,
        ``seconds``; None in every process but the first.

    Raises:
        ConfigError: The config or an override cannot be used.
        CheckpointError: What to start or to go on from cannot be used.
        RunError: No checkpoint came out, another training writes to the same folder, or loss, gradient or parameters
            became NaN or infinite.
    """
    path = config_file(options.config)
    config = read_config(path)
    work_dir = Path(options.work_dir or config.get("work_dir") or f"work_dirs/{path.stem}")
    if options.launcher == "none" or os.environ.get("RANK") == "0":  # in other launches the loop does it
        with holding(work_dir / LOCK, f"training in {work_dir}"):
            return _train(options, path, config, work_dir)
    return _train(options, path, config, work_dir)


def _train(options: TrainOptions, path: Path, config: Config, work_dir: Path) -> dict[str, Any] | None:
    started = time.perf_counter()
    overrides = parse_overrides(options.cfg_options, config)
    resume = _resume_from(options.resume, work_dir, overrides.get("randomness.seed", options.seed))
    config.merge_from_dict(overrides)
    check_config(config, options.config)
    if not options.deepspeed:  # which brings a wrapper of its own
        check_machine(config, options.config)
    if resume is None and config.get("load_from"):
        load_checkpoint(config.load_from)  # a refusal here is clearer than one from within MMEngine

    config_file, cfg_options = path, options.cfg_options
    arguments = ["--work-dir", str(work_dir), "--launcher", options.launcher]
    if options.deepspeed:
        set_single_process_environment()
    if torch.cuda.is_available():
        arguments += ["--deepspeed", options.deepspeed] if options.deepspeed else []
    elif options.deepspeed:
        config_file, cfg_options = write_gloo_config(config, find(options.deepspeed), work_dir), ()
    if not options.deepspeed and "runner_type" not in config:  # a config without our default_runtime
        cfg_options = (*cfg_options, f"runner_type={GroundingRunner.__module__}.{GroundingRunner.__name__}")
    if options.seed is not None:
        arguments += ["--seed", str(options.seed)]
    if resume is not None:
        arguments += ["--resume", str(resume)]
    if cfg_options:
        arguments += ["--cfg-options", *cfg_options]
    _run_xtuner([str(config_file), *arguments])
    return _figures(work_dir, time.perf_counter() - started) if get_rank() == 0 else None


def _figures(work_dir: Path, seconds: float) -> dict[str, Any]:
    checkpoint = last_checkpoint(work_dir)
    if checkpoint is None:
        raise RunError(f"training ended without a checkpoint in {work_dir}")
    hub = MessageHub.get_current_instance()
    losses = {
        name.removeprefix("train/"): round(float(buffer.current()), 6)
        for name, buffer in hub.log_scalars.items()
        if name.startswith("train/") and "loss" in name
    }
    fingerprint = hub.get_info(LMM_INFO, {})
    return {
        "work_dir": str(work_dir),
        "checkpoint": str(checkpoint),
        "iterations": int(number[1]) if (number := re.search(r"iter_(\d+)", checkpoint.name)) else None,
        "losses": losses,
        "lmm_sha256_before": fingerprint.get("before"),
        "lmm_sha256_after": fingerprint.get("after"),
        "skipped_steps": hub.runtime_info.get(SKIPPED, 0),
        "trainable_parameters": hub.get_info(TRAINABLE_INFO, None),
        "peak_memory_bytes": _peak_memory(),
        "seconds": round(seconds, 1),
    }


def _peak_memory() -> int:
    """Most bytes in use so far: tensors on the GPU, where there is one, else the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_xtuner(arguments: list[str]) -> None:
    # XTuner reads its arguments from the command line only.
    from xtuner.tools.train import main

    with _argv(["xtuner train", *arguments]):
        main()


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def write_gloo_config(config: Config, deepspeed: Path, work_dir: Path) -> Path:
    """Writes the config with strategy and optimizer wrapper for gloo beside the run.

    Args:
        config: Loaded config, overrides applied.
        deepspeed: DeepSpeed JSON with explicit ``enabled`` values.
        work_dir: Folder of the run.

    Returns:
        The file to train from (same base name as the config's).

    Raises:
        ConfigError: The JSON is missing, damaged, or asks for what only a GPU can tell.
    """
    try:
        content = json.loads(deepspeed.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"--deepspeed {deepspeed}: no such file. XTuner's named configurations need a GPU; on this machine use "
            "configs/deepspeed/zero2_cpu.json"
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"--deepspeed {deepspeed} is no JSON: {error}") from error
    for key in ("fp16", "bf16"):
        if content.get(key, {}).get("enabled", False) is not False:
            raise ConfigError(
                f"--deepspeed {deepspeed}: `{key}.enabled` must be false on a machine without a GPU"
            )
    wrapper = config.optim_wrapper
    clip = (wrapper.get("clip_grad") or {}).get("max_norm", 1.0)
    for key in ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu"):
        content.pop(key, None)  # taken from the config, as XTuner does
    config.strategy = ConfigDict(
        type="flmm_detseg.engine.training.deepspeed_cpu.GlooDeepSpeedStrategy",
        config=content,
        gradient_clipping=clip,
        gradient_accumulation_steps=wrapper.get("accumulative_counts", 1),
        train_micro_batch_size_per_gpu=config.train_dataloader.batch_size,
    )
    config.optim_wrapper = ConfigDict(type="DeepSpeedOptimWrapper", optimizer=wrapper.optimizer)
    config.runner_type = "FlexibleRunner"
    config.env_cfg.dist_cfg = dict(backend="gloo")
    config.pop("model_wrapper_cfg", None)
    written = work_dir / "gloo" / Path(config.filename).name
    written.parent.mkdir(parents=True, exist_ok=True)
    # Every process writes the same bytes; the rename keeps readers from seeing half a file.
    part = written.with_suffix(f".{os.getpid()}.part")
    part.write_text(config.pretty_text)
    os.replace(part, written)
    return written


def _resume_from(resume: str | None, work_dir: Path, seed: int | None) -> Path | None:
    if resume is None:
        return None
    checkpoint = last_checkpoint(work_dir) if resume == "auto" else Path(resume)
    if checkpoint is None:
        return None
    stored = read_run_state(checkpoint)["meta"].get("seed")  # a refusal here does not wait for the model
    if seed is not None and stored is not None and seed != stored:
        raise CheckpointError(
            f"{checkpoint} was trained with seed {stored}, --seed says {seed}: its data would not go on. Resume "
            f"without it, or start from its tensors: --cfg-options load_from={checkpoint}"
        )
    return states_file(checkpoint).parent if checkpoint.is_dir() else checkpoint
