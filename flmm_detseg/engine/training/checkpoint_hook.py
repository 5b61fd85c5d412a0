"""Checkpoints while training: trainable tensors only, plain containers only, never half written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import nn

from flmm_detseg.engine.training.finite_steps import SKIPPED, check_state
from flmm_detseg.engine.training.resume import check_order, follow_config, order_meta
from flmm_detseg.engine.training.start import BATCH, batch_figures, unwrap
from flmm_detseg.errors import ConfigError
from flmm_detseg.models.checkpoint import (
    check_finite,
    check_lmm,
    check_tensors,
    lmm_meta,
    load_checkpoint,
    read_file,
    states_file,
)
from flmm_detseg.registry import HOOKS
from flmm_detseg.utils.whole_files import put_in_place, write_text

# Entry of the message hub with the fingerprint of the frozen LMM.
LMM_INFO = "lmm_fingerprint"
_PLAIN = (str, int, float, bool, type(None))


@HOOKS.register_module()
class GroundingCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for models with a frozen part.

    Differences: the file holds the trainable tensors and, for resuming, optimizer, schedules and log history as plain
    containers, so that it loads with ``torch.load(weights_only=True)``; it is written under another name and renamed,
    and older ones are removed only after that, so a killed run always leaves a usable checkpoint; loading is strict.

    Args:
        interval: Save every so many iterations (epochs with ``by_epoch``).
        by_epoch: Unit of ``interval``.
        max_keep_ckpts: Checkpoints to keep, -1 for all.
        save_last: Save at the end of training too.
        save_best: Metric to keep the best checkpoint for, None for none.
        rule: ``"greater"`` or ``"less"`` for ``save_best``.
        save_optimizer: Store optimizer and schedules (needed to resume).
    """

    best_ckpt_path: str | None

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = False,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | None = None,
        rule: str | None = None,
        save_optimizer: bool = True,
    ) -> None:
        super().__init__(
            interval=interval,
            by_epoch=by_epoch,
            max_keep_ckpts=max_keep_ckpts,
            save_last=save_last,
            save_best=save_best,
            rule=rule,
            save_optimizer=save_optimizer,
            save_param_scheduler=save_optimizer,
        )

    def before_train(self, runner: Runner) -> None:
        """Checks what a resumed DeepSpeed folder gave: MMEngine's strategy calls no hook for it and loads it leniently.

        Args:
            runner: The run.

        Raises:
            CheckpointError: The LMM, its layout or the trainable tensors do not fit the model; lists what differs.
        """
        super().before_train(runner)
        source = Path(runner._load_from) if runner._resume and runner._load_from is not None else None
        if source is not None and source.is_dir():
            model = unwrap(runner.model)
            stored: Any = read_file(states_file(source))
            check_lmm(model, stored, str(source))
            check_tensors(model, load_checkpoint(source), str(source))
            check_order(runner.optim_wrapper.optimizer, stored, str(source))
            runner.message_hub.load_state_dict(_restore_message_hub(stored["message_hub"]))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Turns everything but tensors into plain containers."""
        for key in ("meta", "param_schedulers", "optimizer"):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Checks LMM, layout, names and shapes, and restores what :meth:`before_save_checkpoint` made plain.

        Args:
            runner: The run.
            checkpoint: What was loaded; changed in place.

        Raises:
            CheckpointError: The LMM, its layout or the trainable tensors do not fit the model; lists what differs.
        """
        model = unwrap(runner.model)
        source = str(getattr(runner, "_load_from", None) or "the checkpoint to load")
        check_lmm(model, checkpoint, source)
        given = check_tensors(model, checkpoint.get("state_dict", checkpoint), source)
        if "optimizer" in checkpoint:
            check_finite(dict(_moments(checkpoint["optimizer"])), source)
            follow_config(runner, checkpoint, source)
        # MMEngine loads a whole state dict: frozen tensors stand for themselves.
        checkpoint["state_dict"] = {**nn.Module.state_dict(model), **given}
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = _restore_message_hub(checkpoint["message_hub"])

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        if self.key_indicators == ["auto"]:
            self._init_rule(self.rules, [next(iter(metrics))])
        (metric,) = self.key_indicators
        if metric not in metrics:
            raise ConfigError(
                f"`save_best` is {metric!r}, which is not measured; known: {', '.join(metrics)}"
            )
        info = runner.message_hub.runtime_info
        best = info.get("best_score", self.init_value_map[self.rules[0]])
        score = metrics[metric]
        if score is None or not self.is_better_than[metric](score, best):
            return
        step = runner.iter  # the loop has counted the iteration before it validates
        previous = self.best_ckpt_path
        name = f"best_{metric}_{self.filename_tmpl.format(step)}".replace("/", "_")
        self.best_ckpt_path = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("best_score", score)
        runner.message_hub.update_info("best_ckpt", self.best_ckpt_path)
        self._write(runner, name, {"epoch": runner.epoch, "iter": step}, resumable=False, by_epoch=False)
        runner.logger.info(f"The best checkpoint so far ({metric} {score:.4f}) is saved to {name}.")
        if previous and previous != self.best_ckpt_path and is_main_process():
            remove(Path(previous))
        if self.last_ckpt is not None:  # the last one has to know which is the best
            step = runner.epoch if self.by_epoch else runner.iter
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": runner.iter})

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        expired: list[int] = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            expired = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self._write(runner, name, meta, resumable=self.save_optimizer, by_epoch=self.by_epoch)
        if is_main_process():
            write_text(Path(runner.work_dir) / "last_checkpoint", self.last_ckpt)
            if Path(self.last_ckpt).is_dir():  # what DeepSpeed's own tools read
                write_text(Path(self.out_dir) / "latest", name)
            for old in expired:
                remove(Path(self.out_dir) / self.filename_tmpl.format(old))
        barrier()

    def _write(
        self, runner: Runner, name: str, meta: dict[str, Any], *, resumable: bool, by_epoch: bool
    ) -> None:
        """Saves under another name and renames, so that ``name`` is never half written, and never with NaN in it."""
        check_state(runner, name, resumable)
        folder = Path(self.out_dir)
        part, final, replaced = folder / f"saving_{name}", folder / name, folder / f"replaced_{name}"
        if is_main_process():
            remove(part)  # of a killed run, which may have had more processes and thus files
        barrier()
        with _plain_and_trainable(runner), _counting(runner, None if by_epoch else meta["iter"]):
            runner.save_checkpoint(
                self.out_dir,
                part.name,
                save_optimizer=resumable,
                save_param_scheduler=resumable,
                meta={
                    **meta,
                    BATCH: batch_figures(runner, runner.train_dataloader),
                    **lmm_meta(unwrap(runner.model).lmm),
                    **order_meta(unwrap(runner.model), runner.optim_wrapper.optimizer),
                },
                by_epoch=by_epoch,
            )
        barrier()
        if is_main_process():
            if final.is_dir():  # a folder, unlike a file, cannot take another's place
                remove(replaced)
                os.replace(final, replaced)
            put_in_place(part, final)
            remove(replaced)
        barrier()


def _moments(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for place, values in optimizer["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                yield f"{key} of the optimizer's parameter {place}", value


def remove(path: Path) -> None:
    """Deletes a checkpoint file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _counting(runner: Runner, done: int | None) -> Iterator[None]:
    """Lets MMEngine store ``done`` iterations: ``FlexibleRunner`` stores the loop's count plus one.

    That is right in an iteration, before the loop counts it, and one too many after the validation that follows.
    """
    loop = runner.train_loop
    counted = loop._iter
    if done is not None:
        loop._iter = done - 1
    try:
        yield
    finally:
        loop._iter = counted


@contextmanager
def _plain_and_trainable(runner: Runner) -> Iterator[None]:
    """MMEngine's savers call ``state_dict()`` of model and message hub; inside they get the small, plain ones.

    The model's frozen parameters would be copied to the CPU at every checkpoint to be thrown away, and the hub's
    objects keep a file from loading with ``weights_only``. DeepSpeed's strategy offers no hook for it.
    """
    model, hub = unwrap(runner.model), runner.message_hub
    overrides: list[tuple[object, Any]] = [(hub, lambda: _plain_message_hub(type(hub).state_dict(hub)))]
    if not hasattr(runner, "strategy"):  # DeepSpeed drops frozen parameters itself
        overrides.append((model, model.trainable_state_dict))
    before = [vars(owner).get("state_dict") for owner, _ in overrides]
    for owner, function in overrides:
        vars(owner)["state_dict"] = function
    try:
        yield
    finally:
        for (owner, _), function in zip(overrides, before):
            if function is None:
                del vars(owner)["state_dict"]
            else:
                vars(owner)["state_dict"] = function


def _plain(value: Any) -> Any:
    """Containers of tensors and plain values; anything else becomes its text."""
    if isinstance(value, torch.Tensor) or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, _PLAIN) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, set)):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # numpy scalars
        return value.item()
    return str(value)


def _plain_message_hub(state: Mapping[str, Any]) -> dict[str, Any]:
    scalars = {}
    for name, buffer in state["log_scalars"].items():
        values, counts = buffer.data
        scalars[name] = {
            "values": torch.tensor([float(v) for v in values], dtype=torch.float64),
            "counts": torch.tensor([int(c) for c in counts], dtype=torch.int64),
        }
    # Only what a resumed run reads; the rest (config text, loop stage) is set again when it starts.
    kept = ("keep_ckpt_ids", "last_ckpt", LMM_INFO, SKIPPED)
    info = {k: v for k, v in state["runtime_info"].items() if k in kept or k.startswith("best_")}
    resumed = {k: v for k, v in state["resumed_keys"].items() if k in scalars or k in info}
    return {"log_scalars": scalars, "runtime_info": _plain(info), "resumed_keys": resumed}


def _restore_message_hub(state: Mapping[str, Any]) -> dict[str, Any]:
    scalars = {
        name: HistoryBuffer(item["values"].tolist(), item["counts"].tolist())
        for name, item in state["log_scalars"].items()
    }
    return {**state, "log_scalars": scalars}
