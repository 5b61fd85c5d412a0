"""Classes as prompts of Grounding DINO, and its token scores as classes again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flmm_detseg.errors import ConfigError
from flmm_detseg.labelling.classes import LabelClass

# [CLS] and [SEP] around a prompt.
_NUM_SPECIAL = 2


@dataclass(frozen=True)
class PromptPhrase:
    """One wording of a class in a prompt.

    Attributes:
        label: Index of its class.
        words: It.
        tokens: Positions of its tokens in the prompt.
    """

    label: int
    words: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One text the detector is asked with: ``"a cat. a dog."``."""

    text: str
    phrases: tuple[PromptPhrase, ...]


def build_prompts(
    classes: Sequence[LabelClass], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[Prompt, ...]:
    """Puts classes into as few prompts as the text length of the detector allows, in their order.

    Args:
        classes: What to look for.
        tokenizer: The detector's (a fast one: positions come from its offsets).
        max_tokens: Tokens of a prompt, with the special ones; the model would cut off the rest without a word.

    Returns:
        The prompts, each with the tokens of its classes.

    Raises:
        ConfigError: A wording does not fit into a prompt, or the tokenizer knows none of its words.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "the detector's tokenizer has no offsets; store it as a fast tokenizer (tokenizer.json)"
        )
    groups: list[list[tuple[int, str]]] = [[]]
    used = _NUM_SPECIAL
    for label, entry in enumerate(classes):
        lengths = {wording: _num_tokens(wording, tokenizer) for wording in entry.wordings}
        known = {wording: length for wording, length in lengths.items() if length}
        if not known:
            raise ConfigError(
                f"class {entry.name!r}: the detector knows no token of it; "
                f"give a synonym in the detector's language ({entry.name}|SYNONYM)"
            )
        for wording, length in known.items():
            needed = length + 1  # the full stop
            if needed + _NUM_SPECIAL > max_tokens:
                raise ConfigError(
                    f"class {entry.name!r}: {wording!r} has {length} tokens, of {max_tokens - _NUM_SPECIAL - 1} at most"
                )
            if used + needed > max_tokens:
                groups.append([])
                used = _NUM_SPECIAL
            groups[-1].append((label, wording))
            used += needed
    return tuple(_prompt(group, tokenizer) for group in groups)


def _num_tokens(wording: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens; 0 where none is known."""
    ids = tokenizer(wording, add_special_tokens=False).input_ids
    return 0 if all(token == tokenizer.unk_token_id for token in ids) else len(ids)


def _prompt(group: Sequence[tuple[int, str]], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    text = ""
    places = []
    for label, wording in group:
        start = len(text) + bool(text)
        text += f"{' ' if text else ''}{wording}."
        places.append((label, wording, start, start + len(wording)))
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    phrases = []
    for label, wording, start, end in places:
        tokens = tuple(i for i, (left, right) in enumerate(offsets) if start <= left < right <= end)
        phrases.append(PromptPhrase(label, tuple(wording.split()), tokens))
    return Prompt(text, tuple(phrases))


def match_classes(probabilities: Tensor, prompt: Prompt, text_threshold: float) -> tuple[Tensor, Tensor]:
    """Class and score of boxes from the scores of the prompt's tokens.

    A box belongs to the phrase with the highest mean score among those with a token over the threshold. Where all
    tokens of a longer phrase are over the threshold and its words contain that one's (``"coffee cup"``, ``"cup"``),
    the box belongs to the longer one. Positions decide, not decoded text: classes may share words.

    Args:
        probabilities: float ``[N, T]``, in (0, 1).
        prompt: Its T or fewer tokens.
        text_threshold: As in the paper.

    Returns:
        Labels int64 ``[N]``, -1 where no phrase has a token over the threshold, and scores float ``[N]``: the highest
        among the tokens of the phrase.

    Source: thresholds and the score of a box: Liu et al., Grounding DINO, ECCV 2024 (arXiv 2303.05499).
    """
    phrases = prompt.phrases
    member = torch.zeros(len(phrases), probabilities.shape[1])
    for number, phrase in enumerate(phrases):
        member[number, list(phrase.tokens)] = 1
    lengths = member.sum(-1)
    over = (probabilities > text_threshold).float() @ member.T  # [N, P]
    mean = probabilities @ member.T / lengths
    best = mean.masked_fill(over == 0, -1).argmax(-1)
    words = [set(phrase.words) for phrase in phrases]
    contains = torch.tensor([[inner <= outer for outer in words] for inner in words])  # [inner, outer]
    longer = contains[best] & (over == lengths)
    # By number of words, then by mean score, which is below 1.
    rank = torch.tensor([float(len(part)) for part in words]) + 0.5 * mean
    chosen = torch.where(longer.any(-1), rank.masked_fill(~longer, -1).argmax(-1), best)
    scores = probabilities.masked_fill(member[chosen] == 0, 0).amax(-1)
    labels = torch.tensor([phrase.label for phrase in phrases])[chosen]
    return torch.where((over > 0).any(-1), labels, -1), scores
