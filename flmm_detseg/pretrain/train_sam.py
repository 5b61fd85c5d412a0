"""Training and evaluation of the tiny SAM."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from flmm_detseg.errors import CheckpointError
from flmm_detseg.ops.masks import mask_iou, resize_maps
from flmm_detseg.pretrain.settings import SamTrainSettings
from flmm_detseg.pretrain.tiny_sam import (
    PROMPT_KINDS,
    PromptedMasks,
    choose_kinds,
    encode_prompts,
    prompted_scene,
)
from flmm_detseg.refiners import VARIANTS, SAMRefiner, build_sam, save_sam
from flmm_detseg.refiners.sam_decoder import decode_masks
from flmm_detseg.utils.whole_files import dump_json


class SamTrainer:
    """The model, its optimizer and its place in the run."""

    def __init__(self, settings: SamTrainSettings) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.refiner = SAMRefiner(build_sam("tiny"), use_text=False)
        self.model = self.refiner.model.requires_grad_(True)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizers = build_optimizers(self.model, settings)
        self.step, self.seconds = 0, 0.0
        self.state_path = Path(settings.work_dir) / "state.pt"
        if settings.resume:
            self._load_state()

    def train_step(self) -> dict[str, float]:
        """One optimizer step; everything random depends on the seed and the step only."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        first = self.step * settings.batch_size
        scenes = [
            prompted_scene(self.refiner, settings.seed, first + i, "train", generator, settings.max_masks)
            for i in range(settings.batch_size)
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self._lr_factor()
        kinds = choose_kinds(sum(len(scene.masks) for scene in scenes), generator)
        logits, quality = predict_prompts(self.refiner, scenes, kinds)
        figures = sam_loss(logits, quality, *square_targets(self.refiner, scenes))
        self.model.zero_grad()
        figures["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(settings.ema, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        return {name: value.item() for name, value in figures.items()}

    def averaged(self) -> SAMRefiner:
        """A refiner with the averaged weights, in evaluation mode."""
        refiner = SAMRefiner(build_sam("tiny"), use_text=False).eval()
        refiner.model.load_state_dict(self.average)
        return refiner

    def save_state(self) -> None:
        """Writes the state file (whole or not at all)."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    def _load_state(self) -> None:
        if not self.state_path.is_file():
            raise CheckpointError(f"nothing to resume: {self.state_path} does not exist")
        state = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(stored)
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def _lr_factor(self) -> float:
        warmup, steps = self.settings.warmup_steps, self.settings.steps
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, steps - warmup)))


def build_optimizers(model: nn.Module, settings: SamTrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for tables, convolutions, norms and biases."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if name in linear else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.05)
    adamw = torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def predict_prompts(
    refiner: SAMRefiner, scenes: Sequence[PromptedMasks], kinds: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Mask logits over SAM's square ``[N, M, m, m]`` and quality estimates ``[N, M]``; N masks in all."""
    model = refiner.model
    pixels = torch.stack([refiner.preprocess(scene.image) for scene in scenes])
    counts = torch.tensor([len(scene.masks) for scene in scenes])
    embeddings = model.image_encoder(pixels).repeat_interleave(counts, dim=0)
    sparse, sparse_mask, dense = encode_prompts(refiner, scenes, kinds)
    return decode_masks(model.mask_decoder, embeddings, refiner.dense_pe(), sparse, sparse_mask, dense)


def sam_loss(logits: Tensor, quality: Tensor, targets: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """SAM's objective: the single mask, the best of the three others, and the quality estimates.

    Args:
        logits: ``[N, 4, m, m]``.
        quality: ``[N, 4]``.
        targets: Covered share of each cell, ``[N, m, m]`` in [0, 1]: borders keep their place below a pixel.
        valid: bool ``[N, m, m]``, False on padding.

    Returns:
        ``loss`` and, detached, ``single`` (its part of the single mask) and ``iou`` (mean IoU of the single
        mask).
    """
    weight = valid[:, None].float()
    target = targets[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum((-2, -1)) / weight.sum((-2, -1))
    probability = logits.sigmoid() * weight
    overlap = (probability * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + (target * weight).sum((-2, -1)) + 1)
    terms = 3 * entropy + dice
    single, best = terms[:, 0].mean(), terms[:, 1:].amin(dim=1).mean()
    iou = mask_iou((logits.detach() > 0) & valid[:, None], targets[:, None] > 0.5)
    loss = single + 0.5 * best + F.mse_loss(quality, iou)
    return {"loss": loss, "single": single.detach(), "iou": iou[:, 0].mean()}


def square_targets(refiner: SAMRefiner, scenes: Sequence[PromptedMasks]) -> tuple[Tensor, Tensor]:
    """Targets over SAM's padded square, as large as its logits: coverage and bool validity ``[N, m, m]``."""
    side = refiner.model.prompt_encoder.mask_input_size[0]
    targets, valid = [], []
    for scene in scenes:
        count, height, width = scene.masks.shape
        longer = max(height, width)
        size = (round(side * height / longer), round(side * width / longer))
        padding = (0, side - size[1], 0, side - size[0])
        coverage = F.interpolate(scene.masks[:, None].float(), size=size, mode="area")[:, 0]
        targets.append(F.pad(coverage, padding))
        valid.append(F.pad(torch.ones(count, *size, dtype=torch.bool), padding))
    return torch.cat(targets), torch.cat(valid)


@torch.no_grad()
def evaluate_sam(refiner: SAMRefiner, seed: int, num_scenes: int) -> dict[str, float]:
    """Mean IoU on held-out scenes at original image size.

    Args:
        refiner: The model.
        seed: Seed of world and prompts.
        num_scenes: Scenes of the split ``val``.

    Returns:
        Per prompt kind the mean over all masks, and ``coarse``: the degraded masks themselves (what the kinds
        with a mask prompt start from).
    """
    ious: dict[str, list[Tensor]] = {kind: [] for kind in (*PROMPT_KINDS, "coarse")}
    for index in tqdm(range(num_scenes), desc="evaluate", mininterval=10):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        scene = prompted_scene(refiner, seed, index, "val", generator)
        size = scene.image.shape[:2]
        for kind in PROMPT_KINDS:
            logits, _ = predict_prompts(refiner, [scene], [kind] * len(scene.masks))
            masks = refiner.model.postprocess_masks(logits[:, :1], refiner.input_size(size), size)[:, 0] > 0
            ious[kind].append(mask_iou(masks, scene.masks))
        ious["coarse"].append(mask_iou(resize_maps(scene.coarse_logits, size) > 0, scene.masks))
    return {kind: round(float(torch.cat(values).mean()), 4) for kind, values in ious.items()}


def train_tiny_sam(settings: SamTrainSettings) -> dict[str, object]:
    """Trains, evaluates and stores the tiny SAM.

    Args:
        settings: Of the run.

    Returns:
        Figures: settings, minutes of training, mean IoU per prompt kind (``iou``) and of random weights
        (``random_iou``).

    Raises:
        CheckpointError: ``resume`` without a state file.
    """
    torch.set_num_threads(settings.threads)
    work_dir = Path(settings.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    trainer = SamTrainer(settings)
    progress = tqdm(total=settings.steps, initial=trainer.step, desc="tiny SAM", mininterval=10)
    with (work_dir / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.step < settings.steps:
            start = time.perf_counter()
            figures = trainer.train_step()
            trainer.seconds += time.perf_counter() - start
            progress.update()
            if trainer.step % 20 == 0:
                progress.set_postfix(loss=f"{figures['loss']:.3f}", iou=f"{figures['iou']:.3f}")
                log.write(dump_json({"step": trainer.step, **figures}) + "\n")
                log.flush()
            if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
                trainer.save_state()
    progress.close()
    refiner = trainer.averaged()
    save_sam(refiner.model, VARIANTS["tiny"], settings.out_dir)
    stored = SAMRefiner.from_pretrained(checkpoint=settings.out_dir, use_text=False).eval()
    torch.manual_seed(settings.seed)
    random = SAMRefiner(build_sam("tiny"), use_text=False).eval()
    return {
        "settings": asdict(settings),
        "minutes": round(trainer.seconds / 60, 1),
        "parameters": sum(p.numel() for p in refiner.model.parameters()),
        "iou": evaluate_sam(stored, settings.seed, settings.eval_scenes),
        "random_iou": evaluate_sam(random, settings.seed, settings.eval_scenes),
    }
