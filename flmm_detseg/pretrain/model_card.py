"""The tiny LLaVA's final figures, those of its controls, and the model card that states them."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld import TINYWORLD_VERSION
from flmm_detseg.errors import RunError
from flmm_detseg.pretrain.eval_frames import evaluate_frames
from flmm_detseg.pretrain.eval_llava import constant_answer_accuracy, evaluate, image_side
from flmm_detseg.pretrain.eval_reason import REASON_FIGURES, evaluate_reason, knows_reason_words
from flmm_detseg.pretrain.llava_chunks import QUESTION_KINDS
from flmm_detseg.pretrain.llava_frames import FRAME_SIDE
from flmm_detseg.pretrain.probe_llava import groundability
from flmm_detseg.pretrain.tiny_llava import (
    build_model,
    load_tiny_llava,
    make_control_lmm,
    save_hub_layout,
    sizes_of,
)
from flmm_detseg.utils.whole_files import read_json, write_json

COLUMNS = ("trained", "random weights", "trained tower, random language model")
ROWS = {
    "mean": "**mean of the kinds**",
    **{f"accuracy.{kind}": f"{kind}" for kind in QUESTION_KINDS},
    "box_mean_iou": "box, mean IoU",
    "frames.clock": "frames of streams: the clock",
    "frames.score": "frames of streams: the score",
    "frames.frame": "frames of streams: other questions",
    **{f"reason.{name}": f"reasoning set: {name}" for name in REASON_FIGURES},
    "caption_word_accuracy": "caption, next-word accuracy (teacher-forced)",
    "caption_pair_precision": "caption, true (colour, kind) pairs (free-running)",
    "caption.best_head_iou": "caption phrases: best single head, IoU at 14 x 14",
    "caption.probe_iou": "caption phrases: per-patch logistic probe on all heads, IoU",
    "refer.best_head_iou": "referring sentences: best single head, IoU",
    "refer.probe_iou": "referring sentences: logistic probe, IoU",
}


def score_model(model_dir: str | Path, seed: int, items: int) -> dict[str, object]:
    """Free-running figures and groundability of a stored model on the validation split."""
    model, tokenizer = load_tiny_llava(model_dir)
    figures = evaluate(model, tokenizer, seed=seed, items=items)
    if image_side(model) == FRAME_SIDE:
        figures["frames"] = evaluate_frames(model, tokenizer, seed=seed, items=items)
    if knows_reason_words(tokenizer):
        figures["reason"] = evaluate_reason(model, tokenizer, seed=seed, items=items)
    for source in ("caption", "refer"):
        figures[source] = groundability(
            model, tokenizer, seed=seed, source=source, num_scenes=max(6, min(60, items))
        )
    return figures


def score_with_controls(model_dir: str | Path, seed: int, items: int) -> dict[str, dict[str, object]]:
    """Scores the stored weights, random weights, and the trained tower with a random language model."""
    model, tokenizer = load_tiny_llava(model_dir)
    with tempfile.TemporaryDirectory() as folder:
        random_dir, control_dir = Path(folder) / "random", Path(folder) / "control"
        save_hub_layout(build_model(tokenizer, sizes_of(model.config), seed), tokenizer, random_dir)
        make_control_lmm(model_dir, control_dir, seed)
        folders = dict(zip(COLUMNS, (model_dir, random_dir, control_dir)))
        scores = {
            name: score_model(path, seed, items) for name, path in tqdm(folders.items(), desc="scoring")
        }
    constant = constant_answer_accuracy(seed, items, model.config.vision_config.image_size)
    return {
        **scores,
        "most frequent answer": {"mean": sum(constant.values()) / len(constant), "accuracy": constant},
    }


def lookup(figures: Mapping[str, object], key: str) -> str:
    """Value of a dotted key with three decimals, a dash where there is none."""
    value: object = figures
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "-" if value is None else f"{value:.3f}"


def figures_table(scores: Mapping[str, Mapping[str, object]]) -> str:
    """Markdown table of :data:`ROWS` by models."""
    lines = [f"| | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
    for key, label in ROWS.items():
        if lookup(scores[COLUMNS[0]], key) == "-":
            continue  # of what this model has not learned
        lines.append(f"| {label} | {' | '.join(lookup(figures, key) for figures in scores.values())} |")
    return "\n".join(lines)


def command_line(settings: Mapping[str, object]) -> str:
    """The command that repeats a run (folders and resuming left out)."""
    skipped = ("out_dir", "work_dir", "resume", "status_file", "sizes", "export_minutes", "eval_items")
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in settings.items()
        if name not in skipped and value != "" and value is not False
    ]
    return " ".join(["python tools/pretrain_tiny_llava.py", *flags])


REASON_TEXTS = (
    ", and of the reasoning set: facts about kinds, whether something is there, and queries answered in words, without"
    " its scenes, held-out wordings, held-out combinations and queries about properties"
)
CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# Tiny LLaVA (TinyWorld)

A real `LlavaForConditionalGeneration` at {parameters:.2f} million parameters: CLIP tower (patch {patch}, {side} x
{side} px, {grid} x {grid} image tokens, width {vision_hidden}, {vision_layers} layers) + Llama (width {text_hidden},
{text_layers} layers, {text_heads} heads = {channels} attention channels), float16 safetensors in the hub's layout.
It knows one thing: the synthetic images of `flmm_detseg/datasets/tinyworld` (version {version}).
As with LLaVA-1.5, layer -2 of the tower is read; the tower's last layer is never run in training and left at its
initial values.

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained("data/models/{folder}")
processor = AutoProcessor.from_pretrained("data/models/{folder}")
prompt = "USER: <image>\\nwhat colour is the star ? ASSISTANT:"
```
Prompt: `USER: <image>\\n{{question}} ASSISTANT: {{answer}}</s>`, lower-case text, words and punctuation separated by
spaces. Caption prompt: `Please give me a description of the image.` (the answer is a caption; referring expressions,
with or without their box, were also trained after it); with `... of the image with boxes.` every phrase that names one
object is followed by its box. Boxes are four words on a 1000-grid, `x0 y0 x1 y1`.
Other text falls apart into characters and is outside what the model has learned.

## How it was made
```
{command}
```
{minutes:.0f} minutes on {threads} CPU threads ({step} steps of {batch_size} images, up to {scenes} different images,
seed {seed}; torch {torch}, transformers {transformers}, {machine}); evaluation time not counted. The schedule follows
the clock, so another machine makes another number of steps.{history}

**Masks were seen.** A warm-up (`--warmup-minutes`) trains the tower and the projector alone on per-patch labels
that are derived from the masks: name, colour, texture and size of what covers the patch (by dot product with the
language model's own word embeddings), the edges of its object's box, and whether an object's centre lies in it. These
losses stay on with weight {label_weight:g}, fading to zero at the end. The language model is trained by text
alone (captions, captions with boxes, referring sentences with their box, questions{frames}{more}); no attention map
is ever supervised. Muon on the 2-D hidden weights, AdamW on the rest, exported weights are a running
average.

## Figures
Validation split (no training scene), {items} questions of every kind, greedy free-running answers of the stored float16
weights computed in float32. An answer must equal the reference; a box counts at IoU >= 0.5. Frames of
streams (screens, cameras, slides, chats of the validation split): the clock, the score, and one other question each.
Reasoning set: facts in held-out words, yes and no equally often; whether something is there; queries about validation
scenes, where the names of all targets must be given.
Controls: the same model with random weights; the trained tower and projector with a newly initialised language model
(`tools/make_control_lmm.py`); neither can produce an answer, so always giving the most frequent answer of a kind is
listed as well. Groundability: attention rows of a phrase, averaged over its tokens, teacher-forced
after the caption prompt; thresholds, best head and probe are chosen on other validation scenes than those scored,
for each model separately.

{table}

One seed; no claim beyond TinyWorld.
"""


def write_llava_card(
    model_dir: str | Path, run: Mapping[str, Any], scores: Mapping[str, dict[str, Any]], history: str = ""
) -> Path:
    """Writes ``README.md`` (the model card) and ``figures.json`` beside the weights.

    Args:
        model_dir: Hub-layout folder.
        run: Settings and last figures of the run (``work_dir/figures.json``).
        scores: Result of :func:`score_with_controls`.
        history: What the settings of the last start do not tell (for example earlier starts it resumed from).

    Returns:
        Path of the card.
    """
    model, _ = load_tiny_llava(model_dir)
    settings, sizes = run["settings"], sizes_of(model.config)
    card = CARD.format(
        **{name: value for name, value in settings.items() if name not in ("sizes", "minutes")},
        minutes=run["minutes"],
        step=run["step"],
        scenes=settings["num_chunks"] * settings["chunk_size"],
        folder=Path(model_dir).name,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        patch=sizes.patch_size,
        side=sizes.image_size,
        grid=sizes.image_size // sizes.patch_size,
        vision_hidden=sizes.vision_hidden,
        vision_layers=f"{sizes.vision_layers} + 1",
        text_hidden=sizes.text_hidden,
        text_layers=sizes.text_layers,
        text_heads=sizes.text_heads,
        channels=sizes.text_layers * sizes.text_heads,
        version=TINYWORLD_VERSION,
        command=command_line(settings),
        frames=", questions about frames of streams" if settings.get("stream_share") else "",
        more=REASON_TEXTS if settings.get("reason") else "",
        history=f"\n{history}" if history else "",
        torch=torch.__version__,
        transformers=transformers.__version__,
        machine=platform.machine(),
        items=scores["trained"]["items"],
        table=figures_table(scores),
    )
    path = Path(model_dir) / "README.md"
    path.write_text(card, encoding="utf-8")
    stored = {"run": {key: value for key, value in run.items() if key != "settings"}, "scores": scores}
    write_json(Path(model_dir) / "figures.json", stored)
    return path


def report_tiny_llava(model_dir: str | Path, work_dir: str | Path, history: str = "") -> dict[str, object]:
    """Scores a finished run with its controls and writes the card (arguments as in :func:`write_llava_card`).

    Args:
        model_dir: The stored model; the card is written into it.
        work_dir: Of the run.
        history: What the card says of earlier runs.

    Returns:
        ``card`` (its path), ``minutes``, ``step``, ``mean``, ``accuracy`` and ``box_mean_iou``; of the ``controls``
        their means.

    Raises:
        RunError: If ``work_dir`` holds no finished run.
    """
    path = Path(work_dir) / "figures.json"
    if not path.is_file():
        raise RunError(
            f"{path}: no finished run; run tools/pretrain_tiny_llava.py without --report-only first"
        )
    run = read_json(path, "start the training again, it goes on from its state")
    settings = run["settings"]
    scores = score_with_controls(model_dir, settings["seed"], settings["final_eval_items"])
    card = write_llava_card(model_dir, run, scores, history)
    trained = scores["trained"]
    return {
        "card": str(card),
        "minutes": run["minutes"],
        "step": run["step"],
        "mean": trained["mean"],
        "accuracy": trained["accuracy"],
        "box_mean_iou": trained["box_mean_iou"],
        "controls": {name: figures["mean"] for name, figures in scores.items() if name != "trained"},
    }
