"""Settings of the pretraining runs; what their commands ask for, without what acts on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TinyLlavaSizes:
    """Sizes of the tiny LLaVA.

    Attributes:
        image_size: Side of the square input, pixels.
        patch_size: Side of a patch, pixels; ``(image_size / patch_size) ** 2`` image tokens.
        vision_hidden: Width of the CLIP tower.
        vision_layers: Layers of the tower that are *used*; one more is built, because LLaVA reads layer -2.
        vision_heads: Attention heads of the tower.
        text_hidden: Width of the Llama.
        text_layers: Layers of the Llama.
        text_heads: Attention heads per layer; ``text_layers * text_heads`` attention channels.
    """

    image_size: int = 112
    patch_size: int = 8
    vision_hidden: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    text_hidden: int = 128
    text_layers: int = 4
    text_heads: int = 8


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
        label_weight: Weight of the patch labels after the warm-up, fading to zero at the end of the run.
        ema: Decay per step of the averaged weights, which are the exported ones.
        export_minutes: Minutes between exports.
        num_chunks: Chunks of scenes in the cache.
        chunk_size: Scenes per chunk.
        eval_items: Questions of each kind at intermediate exports.
        final_eval_items: Questions of each kind at the end.
        stream_share: Share of the images that are frames of streams (screens with a clock and a score, cameras, slides,
            chats) with questions about them; the rest are scenes.
        reason: Learn the words of the reasoning set as well, from texts about scenes and kinds.
        resume: Continue from the state file of ``work_dir``.
        start: Hub-layout folder whose weights a new run starts from (new optimizers, new patch-label head); empty
            for random weights. Its words must be the first of the new model's; rows are added for the others.
        status_file: Text file that gets one line per export; empty for none.
        sizes: Sizes of the model.
    """

    out_dir: str
    work_dir: str
    minutes: float
    warmup_minutes: float = 12.0
    threads: int = 2
    seed: int = 0
    batch_size: int = 16
    muon_lr: float = 0.006
    adamw_lr: float = 0.002
    decay_start: float = 0.5
    label_weight: float = 0.5
    ema: float = 0.995
    export_minutes: float = 15.0
    num_chunks: int = 160
    chunk_size: int = 250
    eval_items: int = 100
    final_eval_items: int = 300
    stream_share: float = 0.0
    reason: bool = False
    resume: bool = False
    start: str = ""
    status_file: str = ""
    sizes: TinyLlavaSizes = TinyLlavaSizes()


@dataclass(frozen=True)
class SamTrainSettings:
    """Settings of one run.

    Attributes:
        out_dir: Hub-layout folder of the result.
        work_dir: State file and log.
        steps: Optimizer steps.
        batch_size: Scenes per step.
        max_masks: Most masks per scene and step.
        muon_lr: Peak learning rate of the transformers' matrices (Muon).
        lr: Peak learning rate of everything else (AdamW). Both: linear warm-up, then a cosine to zero.
        warmup_steps: Steps of the warm-up.
        ema: Decay per step of the averaged weights, which are the stored ones.
        seed: Seed of weights, scenes and prompts.
        threads: Compute threads.
        eval_scenes: Held-out scenes (split ``val``) of the evaluation.
        save_every: Steps between state files.
        resume: Continue from the state file of ``work_dir``.
    """

    out_dir: str
    work_dir: str
    steps: int = 1500
    batch_size: int = 8
    max_masks: int = 7
    muon_lr: float = 0.01
    lr: float = 2e-3
    warmup_steps: int = 60
    ema: float = 0.99
    seed: int = 0
    threads: int = 1
    eval_scenes: int = 200
    save_every: int = 100
    resume: bool = False
