"""Training by XTuner in this process, so that a failure is seen by whoever asked for it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError
from mmengine.logging import MessageHub

from flmm_detseg.errors import ConfigError, RunError

_GLOO_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}


@dataclass(frozen=True)
class TrainOptions:
    """Arguments of ``xtuner train``, and where they differ from it.

    Attributes:
        config: Config file.
        work_dir: Folder of the run; None takes the config's, else ``work_dirs/<config name>``.
        resume: Checkpoint to go on from, ``"auto"`` for the last one of the work folder (a fresh start where there is
            none), None for a fresh start.
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


def train(options: TrainOptions) -> dict[str, Any] | None:
    """Trains as ``xtuner train`` does.

    On a machine without a GPU, ``deepspeed`` runs on gloo: the strategy of :mod:`flmm_detseg.engine.deepspeed_cpu`
    takes the place of XTuner's.

    Returns:
        ``work_dir``, ``checkpoint``, ``iterations``, ``losses`` (last logged), ``lmm_sha256_before`` and
        ``lmm_sha256_after`` (of the frozen part, from ``FrozenGuardHook``; None without it), ``seconds``; None in
        every process but the first.

    Raises:
        ConfigError: The config or an override cannot be used.
        RunError: There is nothing to resume from, or no checkpoint came out.
    """
    started = time.perf_counter()
    path = Path(options.config)
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist (seen from {Path.cwd()})")
    work_dir = Path(options.work_dir or _config_work_dir(path))
    config_file = path
    arguments = ["--work-dir", str(work_dir), "--launcher", options.launcher]
    if options.deepspeed and not torch.cuda.is_available():
        os.environ.update(_GLOO_ENVIRONMENT)
        config_file = write_gloo_config(path, Path(options.deepspeed), work_dir)
    elif options.deepspeed:
        arguments += ["--deepspeed", options.deepspeed]
    if options.seed is not None:
        arguments += ["--seed", str(options.seed)]
    resume = _resume_from(options.resume, work_dir)
    if resume is not None:
        arguments += ["--resume", str(resume)]
    if options.cfg_options:
        arguments += ["--cfg-options", *options.cfg_options]
    _run_xtuner([str(config_file), *arguments])
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    checkpoint = _last_checkpoint(work_dir)
    if checkpoint is None:
        raise RunError(f"training ended without a checkpoint in {work_dir}")
    losses, iterations = last_losses(work_dir)
    frozen = MessageHub.get_current_instance().get_info("lmm_fingerprint", {})
    return {
        "work_dir": str(work_dir),
        "checkpoint": str(checkpoint),
        "iterations": iterations,
        "losses": losses,
        "lmm_sha256_before": frozen.get("before"),
        "lmm_sha256_after": frozen.get("after"),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _config_work_dir(path: Path) -> str:
    return _read(path).get("work_dir") or f"work_dirs/{path.stem}"


def _read(path: Path) -> Config:
    try:
        return Config.fromfile(path)
    except (
        ConfigParsingError,
        SyntaxError,
        NameError,
        ImportError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ConfigError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error


def _run_xtuner(arguments: list[str]) -> None:
    # XTuner reads its arguments from the command line only.
    from xtuner.tools.train import main

    with _argv(["xtuner train", *arguments]):
        try:
            main()
        except (ConfigParsingError, KeyError, FileNotFoundError) as error:
            raise ConfigError(f"{arguments[0]}: {type(error).__name__}: {error}") from error
        except SystemExit as error:
            if error.code not in (0, None):
                raise ConfigError(f"xtuner train refused its arguments: {' '.join(arguments)}") from error


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def write_gloo_config(path: Path, deepspeed: Path, work_dir: Path) -> Path:
    """Writes the config with strategy and optimizer wrapper for gloo beside the run.

    Args:
        path: Config file.
        deepspeed: DeepSpeed JSON with explicit ``enabled`` values.
        work_dir: Folder of the run.

    Returns:
        The file to train from (same base name as ``path``).

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
    config = _read(path)
    wrapper = config.optim_wrapper
    clip = (wrapper.get("clip_grad") or {}).get("max_norm", 1.0)
    for key in ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu"):
        content.pop(key, None)  # taken from the config, as XTuner does
    config.strategy = ConfigDict(
        type="flmm_detseg.engine.deepspeed_cpu.GlooDeepSpeedStrategy",
        config=content,
        gradient_clipping=clip,
        gradient_accumulation_steps=wrapper.get("accumulative_counts", 1),
        train_micro_batch_size_per_gpu=config.train_dataloader.batch_size,
    )
    config.optim_wrapper = ConfigDict(
        type="flmm_detseg.engine.deepspeed_cpu.NoGradDeepSpeedOptimWrapper", optimizer=wrapper.optimizer
    )
    config.runner_type = "FlexibleRunner"
    config.env_cfg.dist_cfg = dict(backend="gloo")
    config.pop("model_wrapper_cfg", None)
    written = work_dir / "gloo" / path.name
    written.parent.mkdir(parents=True, exist_ok=True)
    # Every process writes the same bytes; the rename keeps readers from seeing half a file.
    part = written.with_suffix(f".{os.getpid()}.part")
    part.write_text(config.pretty_text)
    os.replace(part, written)
    return written


def _resume_from(resume: str | None, work_dir: Path) -> Path | None:
    if resume is None:
        return None
    if resume == "auto":
        return _last_checkpoint(work_dir)
    if not Path(resume).exists():
        raise RunError(f"--resume {resume}: no such checkpoint")
    return Path(resume)


def _last_checkpoint(work_dir: Path) -> Path | None:
    pointer = work_dir / "last_checkpoint"
    if not pointer.is_file():
        return None
    path = Path(pointer.read_text().strip())
    return path if path.exists() else None


def last_losses(work_dir: Path) -> tuple[dict[str, float], int]:
    """Losses of the last logged training step of a run, and its iteration."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    for log in reversed(logs):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        if rows:
            row = rows[-1]
            return {k: v for k, v in row.items() if "loss" in k}, int(row.get("iter", row.get("step", 0)))
    return {}, 0
