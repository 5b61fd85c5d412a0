"""Free-running evaluation of a tiny LLaVA on held-out scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from flmm_detseg.datasets.tinyworld import (
    COLOURS,
    KINDS,
    Question,
    Scene,
    make_questions,
    make_scene,
    narrate,
    parse_box,
)
from flmm_detseg.errors import DataError
from flmm_detseg.pretrain.llava_chunks import QUESTION_KINDS, prefix_ids, turn_text
from flmm_detseg.pretrain.llava_data import normalise_images
from flmm_detseg.pretrain.tiny_llava import CAPTION_PROMPT

EVAL_SEED = 7_000_003
MAX_SCENES = 5_000


@dataclass(frozen=True)
class Item:
    """A question about one validation scene."""

    scene: int
    question: Question


def image_side(model: LlavaForConditionalGeneration) -> int:
    """Side of the model's square input, pixels."""
    return model.config.vision_config.image_size


def val_scene(seed: int, index: int, side: int) -> Scene:
    """Scene of the validation split."""
    return make_scene(seed, index, "val", (side, side))


def collect_items(seed: int, items: int, side: int) -> tuple[list[Item], dict[int, Scene]]:
    """Draws ``items`` questions of every kind from consecutive validation scenes.

    Args:
        seed: Of TinyWorld.
        items: Questions of each kind.
        side: Of the square images, in pixels.

    Returns:
        The items, and the scenes they are about.

    Raises:
        DataError: If ``MAX_SCENES`` scenes do not give enough questions of a kind.
    """
    counts = dict.fromkeys(QUESTION_KINDS, 0)
    chosen: list[Item] = []
    scenes: dict[int, Scene] = {}
    for index in range(MAX_SCENES):
        if min(counts.values()) >= items:
            return chosen, scenes
        scene = val_scene(seed, index, side)
        for question in make_questions(scene, EVAL_SEED + index, per_kind=1):
            if counts[question.kind] < items:
                counts[question.kind] += 1
                chosen.append(Item(index, question))
                scenes[index] = scene
    raise DataError(f"{MAX_SCENES} scenes give only {counts} questions; ask for fewer than {items}")


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, num_patches: int) -> list[int]:
    """Tokens up to and including ``ASSISTANT:``, the image token repeated once per patch."""
    text, _ = turn_text(prompt, "")
    return prefix_ids(tokenizer, num_patches) + tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Free-running greedy answers.

    Args:
        model: Tiny LLaVA.
        tokenizer: Its tokenizer.
        images: Images of the model's size, ``[H, W, 3]`` uint8.
        prompts: One question per image.
        max_new_tokens: Most tokens per answer.
        batch_size: Images per call.

    Returns:
        Answers without special tokens.
    """
    patches = model.config.image_seq_length
    encoded = [prompt_ids(tokenizer, prompt, patches) for prompt in prompts]
    # Equal lengths together: hardly any padding.
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(len(encoded[row]) for row in rows)
        pads = [longest - len(encoded[row]) for row in rows]
        ids = torch.tensor([[tokenizer.pad_token_id] * pad + encoded[row] for pad, row in zip(pads, rows)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=normalise_images(np.stack([images[row] for row in rows])),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, text in zip(rows, tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)):
            answers[row] = text.strip()
    return answers


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """IoU of two ``(x1, y1, x2, y2)`` boxes; 0 for a degenerate one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)


def answer_box_iou(given: str, wanted: str, side: int) -> float:
    """IoU of two written boxes; 0 when the given text is no box."""
    box, target = parse_box(given, (side, side)), parse_box(wanted, (side, side))
    if box is None:
        return 0.0
    assert target is not None  # our own text
    return box_iou(box, target)


def normalise_answer(text: str) -> str:
    """Answer without final full stop and double spaces."""
    return " ".join(text.replace(".", " ").split()).lower()


def pair_mentions(text: str) -> set[tuple[str, str]]:
    """(colour, kind) pairs a caption mentions: a colour and a kind within the next two words."""
    words = text.replace(".", " ").replace(",", " ").split()
    singular = {f"{kind}{ending}": kind for kind in KINDS for ending in ("", "s", "es")}
    pairs: set[tuple[str, str]] = set()
    for position, word in enumerate(words):
        if word in COLOURS:
            kinds = [singular[other] for other in words[position + 1 : position + 3] if other in singular]
            pairs.update((word, kind) for kind in kinds[:1])
    return pairs


@torch.no_grad()
def caption_word_accuracy(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene]
) -> tuple[float, float]:
    """Teacher-forced next-word accuracy of the reference captions, as (right words, all words)."""
    right = total = 0
    for scene in scenes:
        caption = narrate(scene, EVAL_SEED + scene.scene_id)
        head = prompt_ids(tokenizer, CAPTION_PROMPT, model.config.image_seq_length)
        words = tokenizer(caption.text, add_special_tokens=False).input_ids
        logits = model(
            input_ids=torch.tensor([head + words]), pixel_values=normalise_images(scene.image[None])
        ).logits
        right += (logits[0, len(head) - 1 : -1].argmax(-1) == torch.tensor(words)).sum().item()
        total += len(words)
    return right, total


def evaluate(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    items: int,
    rank: int = 0,
    world: int = 1,
    num_captions: int | None = None,
) -> dict[str, object]:
    """Free-running accuracy per question kind, mean box IoU and caption figures on the validation split.

    A box is right at IoU >= 0.5; every other answer must equal the reference. With several processes each
    takes its share and the sums are reduced over the default group.

    Args:
        model: Tiny LLaVA (any training mode; put in eval mode).
        tokenizer: Its tokenizer.
        seed: World seed.
        items: Questions of every kind.
        rank: This process.
        world: Number of processes.
        num_captions: Validation scenes whose caption is scored; 50, or ``items`` if that is less, by default.

    Returns:
        ``accuracy`` per kind, their ``mean``, ``box_mean_iou``, ``caption_word_accuracy`` (teacher-forced),
        ``caption_pair_precision`` (share of the (colour, kind) pairs of free-running captions that the scene
        holds), ``items``.
    """
    model.eval()
    side = image_side(model)
    chosen, scenes = collect_items(seed, items, side)
    sums = torch.zeros(len(QUESTION_KINDS) + 1 + 4, dtype=torch.float64)
    for kind_index, kind in enumerate(QUESTION_KINDS):
        share = [item for item in chosen if item.question.kind == kind][rank::world]
        answers = answer(
            model,
            tokenizer,
            [scenes[item.scene].image for item in share],
            [item.question.text for item in share],
            max_new_tokens=6,
        )
        for item, given in zip(share, answers):
            if kind == "box":
                iou = answer_box_iou(given, item.question.answer, side)
                sums[kind_index] += iou >= 0.5
                sums[len(QUESTION_KINDS)] += iou
            else:
                sums[kind_index] += normalise_answer(given) == normalise_answer(item.question.answer)
    num_captions = min(50, items) if num_captions is None else num_captions
    captioned = [val_scene(seed, index, side) for index in range(rank, num_captions, world)]
    sums[-4], sums[-3] = caption_word_accuracy(model, tokenizer, captioned)
    images = [scene.image for scene in captioned]
    for scene, text in zip(captioned, answer(model, tokenizer, images, [CAPTION_PROMPT] * len(images), 90)):
        mentioned = pair_mentions(text)
        shown = {(item.colour, item.kind) for item in scene.objects}
        sums[-2] += len(mentioned & shown)
        sums[-1] += max(1, len(mentioned))
    if world > 1:
        dist.all_reduce(sums)
    figures = sums.tolist()
    accuracy = {kind: round(figures[index] / items, 4) for index, kind in enumerate(QUESTION_KINDS)}
    return {
        "mean": round(sum(accuracy.values()) / len(accuracy), 4),
        "accuracy": accuracy,
        "box_mean_iou": round(figures[len(QUESTION_KINDS)] / items, 4),
        "caption_word_accuracy": round(figures[-4] / figures[-3], 4),
        "caption_pair_precision": round(figures[-2] / figures[-1], 4),
        "items": items,
    }


def constant_answer_accuracy(seed: int, items: int, side: int) -> dict[str, float]:
    """Accuracy of always giving a kind's most frequent answer, on the items of :func:`evaluate`.

    Args:
        seed: Of TinyWorld.
        items: Questions of each kind.
        side: Of the square images, in pixels.

    Returns:
        Accuracy per question kind (the most frequent answer is taken from the scored items themselves).
    """
    chosen, _ = collect_items(seed, items, side)
    answers = {
        kind: [item.question.answer for item in chosen if item.question.kind == kind]
        for kind in QUESTION_KINDS
    }
    return {kind: round(Counter(given).most_common(1)[0][1] / items, 4) for kind, given in answers.items()}


def format_figures(figures: Mapping[str, Any]) -> str:
    """One line for people: step, minutes, mean and every kind."""
    accuracies = {**figures["accuracy"], **figures.get("frames", {}), **figures.get("reason", {})}
    kinds = " ".join(f"{kind} {value:.2f}" for kind, value in accuracies.items())
    return (
        f"step {figures['step']} ({figures['minutes']} min): mean {figures['mean']:.3f} | {kinds} | box IoU "
        f"{figures['box_mean_iou']:.2f} | caption words {figures['caption_word_accuracy']:.3f} pairs "
        f"{figures['caption_pair_precision']:.2f}"
    )
