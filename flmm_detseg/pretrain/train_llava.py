"""Training loop of the tiny LLaVA: patch-label warm-up of the tower, then captions, referring sentences, questions.

The schedule is driven by the clock: the learning rate depends on the elapsed share of ``minutes``, so a run ends
on time on any machine. Several single-threaded processes share the batch (gloo), which on CPU beats one process
with several threads: the operators are small, and every parallel region waits for its slowest thread.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from flmm_detseg.datasets.tinyworld import vocabulary
from flmm_detseg.datasets.tinyworld.reason.wordings import reason_words
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.pretrain.eval_frames import evaluate_frames
from flmm_detseg.pretrain.eval_llava import evaluate, format_figures
from flmm_detseg.pretrain.eval_reason import evaluate_reason
from flmm_detseg.pretrain.llava_chunks import cache_folder, prefix_ids, start_chunk_writer
from flmm_detseg.pretrain.llava_data import PackedBatch, PackedStream
from flmm_detseg.pretrain.llava_objective import Trainee
from flmm_detseg.pretrain.muon import Float32Muon
from flmm_detseg.pretrain.settings import LlavaTrainSettings
from flmm_detseg.pretrain.tiny_llava import (
    build_model,
    build_tokenizer,
    load_grown,
    save_hub_layout,
)
from flmm_detseg.utils.whole_files import dump_json, write_json


def chunk_folder(settings: LlavaTrainSettings, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Where the run's images and texts are cached."""
    return cache_folder(
        settings.work_dir, tokenizer, settings.seed, settings.sizes, settings.stream_share, settings.reason
    )


def tokenizer_of(settings: LlavaTrainSettings) -> PreTrainedTokenizerFast:
    """The tokenizer of a run: the world's words, and those of the reasoning set after them where it is learned."""
    return build_tokenizer(vocabulary(), reason_words() if settings.reason else ())


def build_optimizers(trainee: Trainee, settings: LlavaTrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the 2-D hidden weights, AdamW for embeddings, head, norms, biases and the patch-label head."""
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in trainee.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = any(part in name for part in ("embed", "lm_head", "labels."))
        (hidden if parameter.ndim == 2 and not is_table else other).append(parameter)
    muon = Float32Muon(hidden, lr=settings.muon_lr, weight_decay=0.05)
    adamw = torch.optim.AdamW(other, lr=settings.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def lr_factor(step: int, elapsed_share: float, decay_start: float, warmup_steps: int = 60) -> float:
    """Learning-rate factor: linear warm-up by steps, then constant, then a cosine to zero by elapsed time."""
    ramp = min(1.0, (step + 1) / warmup_steps)
    if elapsed_share <= decay_start:
        return ramp
    progress = min(1.0, (elapsed_share - decay_start) / (1.0 - decay_start))
    return ramp * 0.5 * (1.0 + math.cos(math.pi * progress))


def reduce_gradients(parameters: list[nn.Parameter], numbers: list[float]) -> list[float]:
    """Averages gradients (in place) and a few numbers over the processes.

    All processes must hold gradients for the same parameters; parameters without gradient are skipped.
    """
    if not dist.is_initialized():
        return numbers
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(grad.flatten() for grad in grads), torch.tensor(numbers)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    cursor = 0
    for grad in grads:
        grad.copy_(flat[cursor : cursor + grad.numel()].view_as(grad))
        cursor += grad.numel()
    return flat[cursor:].tolist()


class LlavaTrainer:
    """One process of the training."""

    def __init__(self, settings: LlavaTrainSettings, rank: int) -> None:
        self.settings, self.rank = settings, rank
        self.world = settings.threads
        self.tokenizer = tokenizer_of(settings)
        model = build_model(self.tokenizer, settings.sizes, settings.seed)
        torch.manual_seed(settings.seed)
        self.trainee = Trainee(model, self.tokenizer)
        self.average = build_model(self.tokenizer, settings.sizes, settings.seed)
        self.parameters = [p for p in self.trainee.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(self.trainee, settings)
        self.step, self.elapsed, self.exported = 0, 0.0, 0.0
        self.state_path = Path(settings.work_dir) / "state.pt"
        if settings.resume:
            self.load_state()
        elif settings.start:
            load_grown(model, self.tokenizer, settings.start)
            self.average.load_state_dict(model.state_dict())

    def stream(self) -> PackedStream:
        """This process's batches (another seed per process and start)."""
        sizes = self.settings.sizes
        patches = (sizes.image_size // sizes.patch_size) ** 2
        return PackedStream(
            chunk_folder(self.settings, self.tokenizer),
            num_chunks=self.settings.num_chunks,
            batch_size=self.settings.batch_size // self.world,
            prefix_length=len(prefix_ids(self.tokenizer, patches)),
            tokenizer=self.tokenizer,
            seed=hash((self.settings.seed, self.rank, self.step)) % 2**32,
        )

    def stream_ready(self) -> PackedStream:
        """The stream, once its first chunk is there."""
        stream = self.stream()
        while stream.refresh() == 0:
            time.sleep(1.0)
        return stream

    def save_state(self) -> None:
        """Writes the state file (whole or not at all)."""
        state = {
            "trainee": self.trainee.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": {"step": self.step, "elapsed": self.elapsed, "exported": self.exported},
        }
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    def load_state(self) -> None:
        """Continues from the state file.

        Raises:
            CheckpointError: If there is none.
        """
        if not self.state_path.is_file():
            raise CheckpointError(f"{self.state_path}: no state to resume from; start without --resume")
        state = torch.load(self.state_path, weights_only=True)
        self.trainee.load_state_dict(state["trainee"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        for name, value in state["counters"].items():
            setattr(self, name, value)

    def train_step(self, batch: PackedBatch) -> dict[str, float]:
        """One optimisation step; returns the loss parts of this process."""
        settings = self.settings
        share = self.elapsed / (60 * settings.minutes)
        language = self.elapsed >= 60 * settings.warmup_minutes
        label_weight = settings.label_weight * (1 - share) if language else 1.0
        factor = lr_factor(self.step, share, settings.decay_start)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
        loss, parts = self.trainee(batch, label_weight, language)
        loss.backward()
        return parts

    def update(self, seconds: float) -> None:
        """Averages the gradients, steps optimizers and averaged weights, advances the shared clock."""
        (seconds,) = reduce_gradients(self.parameters, [seconds])
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.trainee.model.parameters()), 1 - decay
            )
        self.step += 1
        self.elapsed += seconds

    def run(self) -> dict[str, object]:
        """Trains until the time is used up, exporting on the way; returns the final figures."""
        settings = self.settings
        stream = self.stream_ready()
        total = 60 * settings.minutes
        bar = tqdm(total=round(total), unit="s", disable=self.rank > 0, mininterval=10)
        smooth: dict[str, float] = {}
        started, figures = time.monotonic(), {}
        for batch in stream:
            parts = self.train_step(batch)
            now = time.monotonic()
            self.update(now - started)
            started = now
            for name, value in parts.items():
                smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
            bar.n = round(min(self.elapsed, total))
            bar.set_postfix(step=self.step, **{k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
            bar.update(0)
            done = self.elapsed >= total
            if done or self.elapsed - self.exported >= 60 * settings.export_minutes:
                figures = self.export(settings.final_eval_items if done else settings.eval_items, smooth)
                started = time.monotonic()
            if done:
                return figures
        raise AssertionError("the stream is endless")

    def export(self, items: int, smooth: dict[str, float]) -> dict[str, object]:
        """Saves state and hub-layout folder, then evaluates the averaged weights over all processes."""
        self.exported = self.elapsed
        if self.rank == 0:
            self.save_state()
            save_hub_layout(self.average, self.tokenizer, self.settings.out_dir)
        began = time.monotonic()
        share = dict(seed=self.settings.seed, items=items, rank=self.rank, world=self.world)
        figures = evaluate(self.average, self.tokenizer, **share)
        if self.settings.stream_share:
            figures["frames"] = evaluate_frames(self.average, self.tokenizer, **share)
        if self.settings.reason:
            figures["reason"] = evaluate_reason(self.average, self.tokenizer, **share)
        figures = {
            "minutes": round(self.elapsed / 60, 1),
            "step": self.step,
            "losses": {name: round(value, 4) for name, value in smooth.items()},
            "eval_seconds": round(time.monotonic() - began, 1),
            **figures,
        }
        if self.rank == 0:
            with open(Path(self.settings.work_dir) / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(dump_json(figures) + "\n")
            if self.settings.status_file:
                line = f"{time.strftime('%H:%M:%S', time.gmtime())} UTC {format_figures(figures)}\n"
                with open(self.settings.status_file, "a", encoding="utf-8") as status:
                    status.write(line)
        return figures


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _train_process(rank: int, settings: LlavaTrainSettings, port: int) -> None:
    torch.set_num_threads(1)
    if settings.threads > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=settings.threads
        )
    figures = LlavaTrainer(settings, rank).run()
    if rank == 0:
        path = Path(settings.work_dir) / "figures.json"
        write_json(path, {"settings": asdict(settings), **figures})
    if dist.is_initialized():
        dist.destroy_process_group()


def train_tiny_llava(
    settings: LlavaTrainSettings, launch: Callable[..., object] = spawn
) -> dict[str, object]:
    """Trains the tiny LLaVA and exports it to ``settings.out_dir``.

    Args:
        settings: The run.
        launch: Starts the processes; :func:`torch.multiprocessing.spawn` by default.

    Returns:
        Settings and final figures, as stored in ``work_dir/figures.json``.

    Raises:
        ConfigError: Both ``resume`` and ``start`` are given.
    """
    if settings.resume and settings.start:
        raise ConfigError(
            "--resume goes on from the state file, --start from stored weights; give one of them"
        )
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    # glibc gives every large tensor back to the system and pages it in again; keeping it saves a tenth of a step.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 * 10**9))
    tokenizer = tokenizer_of(settings)
    writer = start_chunk_writer(
        chunk_folder(settings, tokenizer),
        tokenizer,
        settings.seed,
        settings.num_chunks,
        settings.chunk_size,
        settings.sizes,
        settings.stream_share,
        settings.reason,
    )
    try:
        launch(_train_process, args=(settings, free_port()), nprocs=settings.threads)
    finally:
        writer.terminate()
        writer.join()
    return json.loads((Path(settings.work_dir) / "figures.json").read_text(encoding="utf-8"))
