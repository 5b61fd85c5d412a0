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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from flmm_detseg.datasets.tinyworld import COLOURS, KINDS, STUFF, TEXTURES, vocabulary
from flmm_detseg.errors import CheckpointError
from flmm_detseg.pretrain.eval_llava import evaluate, format_figures
from flmm_detseg.pretrain.llava_data import (
    NUM_COORDINATES,
    SIZE_WORDS,
    PackedBatch,
    PackedStream,
    cache_folder,
    prefix_ids,
    start_chunk_writer,
)
from flmm_detseg.pretrain.tiny_llava import (
    TinyLlavaSizes,
    build_model,
    build_tokenizer,
    image_features,
    save_hub_layout,
)

WORD_GROUPS = ((*KINDS, *STUFF), tuple(COLOURS), TEXTURES, SIZE_WORDS)


@dataclass(frozen=True)
class LlavaTrainSettings:
    """Settings of one run.

    Attributes:
        out_dir: Hub-layout folder of the exports.
        work_dir: State file, log and data cache.
        minutes: Length of the whole run, warm-up included, evaluation excluded.
        warmup_minutes: Minutes of patch-label warm-up at the start.
        threads: Number of single-threaded processes.
        seed: Seed of weights, data and order.
        batch_size: Images per step over all processes.
        muon_lr: Peak learning rate of the 2-D hidden weights (Muon).
        adamw_lr: Peak learning rate of everything else (AdamW).
        decay_start: Share of the run after which the learning rates fall to zero along a cosine.
        label_weight: Weight of the patch labels after the warm-up, fading to zero at half of the run.
        ema: Decay per step of the averaged weights, which are the exported ones.
        export_minutes: Minutes between exports.
        num_chunks: Chunks of scenes in the cache.
        chunk_size: Scenes per chunk.
        eval_items: Questions of each kind at intermediate exports.
        final_eval_items: Questions of each kind at the end.
        resume: Continue from the state file of ``work_dir``.
        status_file: Text file that gets one line per export; empty for none.
        sizes: Sizes of the model.
    """

    out_dir: str
    work_dir: str
    minutes: float
    warmup_minutes: float = 5.0
    threads: int = 2
    seed: int = 0
    batch_size: int = 16
    muon_lr: float = 0.006
    adamw_lr: float = 0.002
    decay_start: float = 0.5
    label_weight: float = 0.3
    ema: float = 0.995
    export_minutes: float = 15.0
    num_chunks: int = 160
    chunk_size: int = 250
    eval_items: int = 100
    final_eval_items: int = 300
    resume: bool = False
    status_file: str = ""
    sizes: TinyLlavaSizes = TinyLlavaSizes()


class PatchLabelLoss(nn.Module):
    """Cross-entropy of per-patch labels on the projected image tokens.

    Names, colours, textures and sizes are classified by the dot product with the language model's own output
    and input embeddings of these words, so the tower learns in the language model's terms; box edges and "the
    centre of an object lies here" by linear layers that are thrown away after training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, hidden: int) -> None:
        super().__init__()
        self.box = nn.Linear(hidden, 4 * NUM_COORDINATES)
        self.centre = nn.Linear(hidden, 2)
        self.word_ids = [torch.tensor(tokenizer.convert_tokens_to_ids(list(words))) for words in WORD_GROUPS]

    def forward(self, features: Tensor, labels: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Sums the groups' losses.

        Args:
            features: Projected image tokens ``[B, N, D]``.
            labels: ``[B, N, len(LABEL_GROUPS)]``, -100 where a group does not apply.
            tables: Output and input embedding tables, each ``[V, D]``.
        """
        flat, labels = features.flatten(0, 1), labels.flatten(0, 1)
        normed = F.rms_norm(flat, flat.shape[-1:])
        losses = []
        for group, ids in enumerate(self.word_ids):
            target = labels[:, group]
            losses += [F.cross_entropy(normed @ table[ids].T, target, ignore_index=-100) for table in tables]
        things = labels[:, 1] >= 0
        edges = self.box(normed[things]).unflatten(1, (4, NUM_COORDINATES))
        box_loss = F.cross_entropy(edges.flatten(0, 1), labels[things][:, len(WORD_GROUPS) : -1].flatten())
        centre_loss = F.cross_entropy(self.centre(normed), labels[:, -1])
        return torch.stack(losses).sum() / 2 + box_loss + 2 * centre_loss


class Trainee(nn.Module):
    """The model, its patch-label head, and the loss of a packed batch."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model
        self.labels = PatchLabelLoss(tokenizer, model.config.text_config.hidden_size)
        head = [token for token in prefix_ids(tokenizer, 1)][:-1]
        self.register_buffer("head_ids", torch.tensor(head), persistent=False)
        tower = model.model.vision_tower.vision_model
        # LLaVA reads layer -2: the last layer and the pooling norm never see a gradient.
        for unused in (tower.encoder.layers[-1], tower.post_layernorm):
            unused.requires_grad_(False)

    def forward(
        self, batch: PackedBatch, label_weight: float, language: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch.

        Args:
            batch: Packed batch.
            label_weight: Weight of the patch labels; 0 skips them.
            language: Whether the language loss is computed.

        Returns:
            Scalar loss and its parts as numbers.
        """
        features = image_features(self.model, batch.pixel_values)
        loss, parts = features.new_zeros(()), {}
        if label_weight > 0:
            tables = (self.model.lm_head.weight, self.model.get_input_embeddings().weight)
            label_loss = self.labels(features, batch.labels, tables)
            loss = loss + label_weight * label_loss
            parts["labels"] = label_loss.item()
        if language:
            text_loss = self.text_loss(features, batch)
            loss = loss + text_loss
            parts["text"] = text_loss.item()
        return loss, parts

    def packed_hidden(self, features: Tensor, batch: PackedBatch) -> Tensor:
        """Last hidden states of the packed turns, ``[B, L, D]``.

        The same numbers as the language model's own forward with the full 4-D mask (tested), in less time: the
        prefix is plain causal, and the last layer computes no prefix rows, which nobody reads.
        """
        language = self.model.model.language_model
        embed = self.model.get_input_embeddings()
        head = embed(self.head_ids).expand(len(features), -1, -1)
        hidden = torch.cat([head, features, embed(batch.text_ids)], dim=1)
        prefix = head.shape[1] + features.shape[1]
        rotary = language.rotary_emb(hidden, batch.position_ids)
        for layer in language.layers[:-1]:
            hidden = packed_layer(layer, hidden, rotary, batch.attention_bias, prefix, text_only=False)
        hidden = packed_layer(
            language.layers[-1], hidden, rotary, batch.attention_bias, prefix, text_only=True
        )
        return language.norm(hidden)

    def text_loss(self, features: Tensor, batch: PackedBatch) -> Tensor:
        """Weighted next-token cross-entropy of the answers."""
        hidden = self.packed_hidden(features, batch)[:, :-1]
        targets, weights = batch.targets[:, 1:], batch.weights[:, 1:]
        kept = targets >= 0
        logits = self.model.lm_head(hidden[kept])
        losses = F.cross_entropy(logits, targets[kept], reduction="none")
        return (losses * weights[kept]).sum() / weights[kept].sum()


def packed_layer(
    layer: LlamaDecoderLayer,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    bias: Tensor,
    prefix: int,
    *,
    text_only: bool,
) -> Tensor:
    """One Llama layer over a packed sequence.

    Args:
        layer: The layer (as many key-value heads as heads).
        hidden: ``[B, P + L, D]``.
        rotary: Cosines and sines of the positions.
        bias: ``[B, 1, L, P + L]`` additive mask of the text rows.
        prefix: P, rows that attend causally among themselves.
        text_only: Compute the text rows only.

    Returns:
        ``[B, P + L, D]``, or ``[B, L, D]`` with ``text_only``.
    """
    attention = layer.self_attn

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    normed = layer.input_layernorm(hidden)
    query, key, value = (split(p(normed)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    mixed = F.scaled_dot_product_attention(query[:, :, prefix:], key, value, attn_mask=bias)
    if text_only:
        hidden = hidden[:, prefix:]
    else:
        image = (values[:, :, :prefix] for values in (query, key, value))
        mixed = torch.cat([F.scaled_dot_product_attention(*image, is_causal=True), mixed], dim=2)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def build_optimizers(trainee: Trainee, settings: LlavaTrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the 2-D hidden weights, AdamW for embeddings, head, norms, biases and the patch-label head."""
    hidden, other = [], []
    for name, parameter in trainee.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = any(part in name for part in ("embed", "lm_head", "labels."))
        (hidden if parameter.ndim == 2 and not is_table else other).append(parameter)
    muon = torch.optim.Muon(hidden, lr=settings.muon_lr, weight_decay=0.05)
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
        self.tokenizer = build_tokenizer(vocabulary())
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

    def stream(self) -> PackedStream:
        """This process's batches (another seed per process and start)."""
        sizes = self.settings.sizes
        patches = (sizes.image_size // sizes.patch_size) ** 2
        return PackedStream(
            cache_folder(self.settings.work_dir, self.tokenizer, self.settings.seed, sizes),
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
        label_weight = settings.label_weight * max(0.0, 1 - 2 * share) if language else 1.0
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
        figures = evaluate(
            self.average,
            self.tokenizer,
            seed=self.settings.seed,
            items=items,
            rank=self.rank,
            world=self.world,
        )
        figures = {
            "minutes": round(self.elapsed / 60, 1),
            "step": self.step,
            "losses": {name: round(value, 4) for name, value in smooth.items()},
            "eval_seconds": round(time.monotonic() - began, 1),
            **figures,
        }
        if self.rank == 0:
            with open(Path(self.settings.work_dir) / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(figures) + "\n")
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
        path.write_text(json.dumps({"settings": asdict(settings), **figures}, indent=1), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


def train_tiny_llava(
    settings: LlavaTrainSettings, launch: Callable[..., object] = mp.spawn
) -> dict[str, object]:
    """Trains the tiny LLaVA and exports it to ``settings.out_dir``.

    Args:
        settings: The run.
        launch: Starts the processes; :func:`torch.multiprocessing.spawn` by default.

    Returns:
        Settings and final figures, as stored in ``work_dir/figures.json``.
    """
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    # glibc gives every large tensor back to the system and pages it in again; keeping it saves a tenth of a step.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 * 10**9))
    tokenizer = build_tokenizer(vocabulary())
    folder = cache_folder(settings.work_dir, tokenizer, settings.seed, settings.sizes)
    writer = start_chunk_writer(
        folder, tokenizer, settings.seed, settings.num_chunks, settings.chunk_size, settings.sizes
    )
    try:
        launch(_train_process, args=(settings, free_port()), nprocs=settings.threads)
    finally:
        writer.terminate()
        writer.join()
    return json.loads((Path(settings.work_dir) / "figures.json").read_text(encoding="utf-8"))
