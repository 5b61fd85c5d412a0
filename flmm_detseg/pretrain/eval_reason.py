"""Free-running evaluation of a tiny LLaVA on facts about kinds, presence, and queries answered in words."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import torch
import torch.distributed as dist
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from flmm_detseg.datasets.tinyworld.reason.draw import is_held_out
from flmm_detseg.datasets.tinyworld.reason.facts import facts
from flmm_detseg.datasets.tinyworld.reason.families import queries
from flmm_detseg.datasets.tinyworld.reason.query import View
from flmm_detseg.datasets.tinyworld.reason.wordings import held_out_wordings, known_wordings, reason_words
from flmm_detseg.pretrain.eval_llava import answer, image_side, normalise_answer, val_scene
from flmm_detseg.pretrain.llava_reason import SEEN_FAMILIES, answer_words, there_questions

REASON_FIGURES = ("facts", "there", "queries", "queries in held-out words")
_FIRST_SCENE = 20_000

Asked = tuple[np.ndarray, str, str]


def knows_reason_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the words of the reasoning set are tokens."""
    return set(reason_words()) <= set(tokenizer.get_vocab())


def collect(seed: int, items: int, side: int) -> dict[str, list[Asked]]:
    """Items of every kind of :data:`REASON_FIGURES`, as (image, question, answer).

    Args:
        seed: World seed.
        items: Of every kind.
        side: Of the images, pixels.

    Returns:
        Facts in held-out wordings, half of them true, before any scene; as many "yes" as "no"; queries whose
        combination is known, family after family, in known and in held-out wordings.
    """
    rng = random.Random(seed)
    asked: dict[str, list[Asked]] = {name: [] for name in REASON_FIGURES}
    tested = {word: [fact for fact in facts(held_out=True) if fact.answer == word] for word in ("yes", "no")}
    for number in count():
        if min(map(len, asked.values())) >= items:
            return {name: found[:items] for name, found in asked.items()}
        scene = val_scene(seed, _FIRST_SCENE + number, side)
        view, word = View(scene), ("yes", "no")[number % 2]
        fact = rng.choice(tested[word])
        asked["facts"].append((scene.image, fact.text, fact.answer))
        texts = there_questions(view)[word]
        if texts:
            asked["there"].append((scene.image, rng.choice(texts), word))
        family = SEEN_FAMILIES[number % len(SEEN_FAMILIES)]
        found = [query for query in queries(view, family) if query.targets and not is_held_out(query)]
        if found:
            query = rng.choice(found)
            for name, wordings in zip(
                REASON_FIGURES[2:], (known_wordings(family), held_out_wordings(family)), strict=True
            ):
                text = rng.choice(wordings).format(**query.slots)
                asked[name].append((scene.image, text, answer_words(view, query)))
    raise AssertionError("unreachable")


def evaluate_reason(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    items: int,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Free-running accuracy on what the reasoning set adds; an answer must equal the reference.

    Args:
        model: Tiny LLaVA (any training mode; put in eval mode).
        tokenizer: Its tokenizer.
        seed: World seed.
        items: Questions of every kind.
        rank: This process.
        world: Number of processes; each takes its share.

    Returns:
        Shares in [0, 1] by kind of :data:`REASON_FIGURES`, rounded to 4 digits; the same in all processes.
    """
    model.eval()
    sums = torch.zeros(len(REASON_FIGURES), dtype=torch.float64)
    for number, asked in enumerate(collect(seed, items, image_side(model)).values()):
        mine = asked[rank::world]
        given = answer(model, tokenizer, [a[0] for a in mine], [a[1] for a in mine], max_new_tokens=24)
        sums[number] = sum(
            normalise_answer(text) == normalise_answer(wanted)
            for text, (_, _, wanted) in zip(given, mine, strict=True)
        )
    if world > 1:
        dist.all_reduce(sums)
    return {name: round(right / items, 4) for name, right in zip(REASON_FIGURES, sums.tolist(), strict=True)}
