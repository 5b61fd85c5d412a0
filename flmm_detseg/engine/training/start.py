"""What a run starts from: strict loading of ``load_from``, and checks of the checkpoint that ``--resume`` names.

Called by the training loop, which both of MMEngine's runners build before they wrap the model and before they load.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine._strategy import DeepSpeedStrategy
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from flmm_detseg.engine.training.resume import follow_config_of_engine, take_order
from flmm_detseg.errors import CheckpointError
from flmm_detseg.models.checkpoint import check_folder, load_file, read_file, states_file
from flmm_detseg.models.grounding_lmm import GroundingLMM

# In a work folder: locked by the run's first process.
LOCK = ".training.lock"
# Entry of a checkpoint's meta: how its run cut the data into steps.
BATCH = "batch"


def batch_figures(runner: Runner | FlexibleRunner, loader: DataLoader[Any]) -> dict[str, int]:
    """What the data position and the optimizer's state depend on.

    Args:
        runner: The run.
        loader: Its training data.

    Returns:
        ``processes``, ``batch_size`` (of one process) and ``accumulation`` (batches per step of the optimizer).
    """
    if uses_deepspeed(runner):
        accumulation = runner.strategy.config["gradient_accumulation_steps"]
    elif isinstance(runner.optim_wrapper, Mapping):
        accumulation = runner.optim_wrapper.get("accumulative_counts", 1)
    else:
        accumulation = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
    return {
        "processes": get_world_size(),
        "batch_size": batch_sampler_of(loader).batch_size,
        "accumulation": accumulation,
    }


def batch_sampler_of(loader: DataLoader[Any]) -> Any:
    """The loader's batch sampler: torch's, or one of our own with its ``sampler`` and ``batch_size``."""
    return loader.batch_sampler


def uses_deepspeed(runner: Runner | FlexibleRunner) -> bool:
    """Whether checkpoints of the run are DeepSpeed folders."""
    return isinstance(getattr(runner, "strategy", None), DeepSpeedStrategy)


def unwrap(model: nn.Module) -> GroundingLMM:
    """The model inside DDP or a DeepSpeed engine."""
    inner: Any = model
    while is_model_wrapper(inner) or not isinstance(inner, GroundingLMM):
        inner = inner.module if hasattr(inner, "module") else inner.model
    return inner


def prepare_start(runner: Runner | FlexibleRunner, loader: DataLoader[Any], max_iters: int) -> None:
    """Loads what ``load_from`` names, or checks what is to be resumed.

    Args:
        runner: The run, its model not yet wrapped by DeepSpeed.
        loader: Its training data.
        max_iters: Iterations it will train.

    Raises:
        CheckpointError: The checkpoint does not fit the model or the run; says how.
    """
    if runner._resume:
        named = runner._resume if isinstance(runner._resume, str) else runner._load_from
        path = last_checkpoint(Path(runner.work_dir)) if named is None else Path(named)
        if path is not None:
            content = check_resume(runner, path, batch_figures(runner, loader), max_iters)
            if isinstance(runner.model, Mapping):
                runner.model = runner.strategy.build_model(runner.model)
            take_order(unwrap(runner.model), content)
            if uses_deepspeed(runner):
                follow_config_of_engine(runner.strategy)
            # DeepSpeed takes the last part as the folder's name: no trailing slash, no outer folder.
            runner._load_from = str(states_file(path).parent if path.is_dir() else path)
            runner._resume = True
    elif runner._load_from is not None:
        # Here rather than by MMEngine: it loads leniently, and each of its runners only its own kind of checkpoint.
        if isinstance(runner.model, Mapping):
            runner.model = runner.strategy.build_model(runner.model)
        load_file(unwrap(runner.model), runner._load_from)
        runner.logger.info(f"Trainable tensors loaded from {runner._load_from}")
        runner._has_loaded = True


def read_run_state(path: Path) -> Mapping[str, Any]:
    """Reads a checkpoint that a run can go on from.

    Args:
        path: File, or DeepSpeed folder.

    Returns:
        Its content, with ``meta`` and ``message_hub``.

    Raises:
        CheckpointError: It cannot be read, or holds no state of a run.
    """
    content = read_file(states_file(path))
    wanted = ("meta", "message_hub", "optim_wrapper" if path.is_dir() else "optimizer")
    if not isinstance(content, Mapping) or any(key not in content for key in wanted):
        raise CheckpointError(
            f"{path} holds tensors only, no state of a run to go on with; to start from its tensors use "
            f"--cfg-options load_from={path}"
        )
    return content


def last_checkpoint(work_dir: Path) -> Path | None:
    """The checkpoint a work folder's last run can go on from; None where no run saved any.

    Args:
        work_dir: Where the run writes.

    Returns:
        The file or folder; it exists.

    Raises:
        CheckpointError: The one that ``last_checkpoint`` names is gone, or it names none (a power cut).
    """
    pointer = work_dir / "last_checkpoint"
    if not pointer.is_file():
        return None
    try:
        text = pointer.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    named = Path(text)
    if not named.name or not text.isprintable():
        raise CheckpointError(
            f"{pointer} names no checkpoint, it is empty or damaged (a power cut?); {_instead(work_dir)}, or delete "
            f"{pointer.name} to start from the beginning"
        )
    # The second exists between two renames of a folder, the third where the work folder was moved.
    for path in (named, named.with_name(f"replaced_{named.name}"), work_dir / named.name):
        if path.exists():
            return path
    raise CheckpointError(
        f"{pointer} names {named}, which does not exist; {_instead(work_dir)}, or delete {pointer.name} to start "
        "from the beginning"
    )


def _instead(work_dir: Path) -> str:
    whole = newest_checkpoint(work_dir)
    return (
        f"name the newest complete one beside it: --resume {whole}"
        if whole
        else "there is no complete one beside it"
    )


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The ``iter_N.pth`` of most iterations that a run can go on from; None where there is none."""
    files = [(re.fullmatch(r"iter_(\d+)\.pth", path.name), path) for path in work_dir.glob("iter_*.pth")]
    for _, path in sorted(((-int(found[1]), path) for found, path in files if found)):
        with contextlib.suppress(CheckpointError):
            read_run_state(path)
            return path
    return None


def check_resume(
    runner: Runner | FlexibleRunner, path: Path, figures: Mapping[str, int], max_iters: int
) -> Mapping[str, Any]:
    """Checks that this run goes on as the checkpoint's would have.

    Args:
        runner: This run.
        path: Checkpoint.
        figures: :func:`batch_figures` of this run.
        max_iters: Iterations it will train.

    Returns:
        The checkpoint's content.

    Raises:
        CheckpointError: It is of the other kind (DeepSpeed or not), holds code or no state of a run, was written by a
            run with another number of processes, batch size or accumulation, or in the middle of an accumulation.
    """
    instead = f"or start from its tensors: --cfg-options load_from={path}"
    if path.is_dir() != uses_deepspeed(runner):
        kind, remedy = (
            ("a DeepSpeed folder", "add") if path.is_dir() else ("of a run without DeepSpeed", "leave out")
        )
        raise CheckpointError(f"{path} is {kind}; to resume from it {remedy} --deepspeed, {instead}")
    content = read_run_state(path)
    meta = content["meta"]
    if path.is_dir():
        check_folder(states_file(path).parent)
    stored = meta.get(BATCH)
    if stored is None:
        runner.logger.warning(
            f"{path} does not say with how many processes, batch size and accumulation it was trained; the resumed run "
            f"goes on as the interrupted one only if they were {dict(figures)}"
        )
        stored = {}
    for name, now in figures.items():
        if stored.get(name, now) != now:
            raise CheckpointError(
                f"{path} was trained with {name} = {stored[name]}, this run has {name} = {now}: its data and schedule "
                f"would not go on. Resume with {name} = {stored[name]}, {instead}"
            )
    done, accumulation = meta["iter"], figures["accumulation"]
    if done % accumulation and done < max_iters:
        raise CheckpointError(
            f"{path} was saved after iteration {done}, in the middle of an accumulation of {accumulation} iterations, "
            f"whose gradients it does not hold. Resume from one at a multiple of {accumulation} (checkpoint interval), "
            f"{instead}"
        )
    return content
