"""What a model's ``generation_config.json`` says about greedy answers, for every loop that generates.

The processors and stopping criteria are transformers' own, made by the model. ``generate`` gets them through
:func:`greedy_model`, our own loops through :func:`token_rules`: the same fields, so the same tokens.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from flmm_detseg.errors import ConfigError, DataError

# Fields that a greedy answer obeys. What they ask for depends on the tokens so far only.
_OBEYED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
)
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields that would make another kind of answer: other searches, second passes, clocks.
_OTHER_ANSWERS = (
    "assistant_early_exit",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "force_words_ids",
    "guidance_scale",
    "max_time",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "token_healing",
)


class TokenRules:
    """Rules for one answer beyond its end tokens and its length.

    Args:
        processors: From logits to scores.
        stops: Further reasons to stop.
        prompt_ids: The prompt as the model's ``generate`` would read it, int64 ``[T]``.
        device: Of the logits.

    Attributes:
        stopped: Whether the tokens so far end the answer.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        stops: StoppingCriteriaList,
        prompt_ids: Tensor,
        device: torch.device,
    ) -> None:
        self._processors = processors
        self._stops = stops
        self._ids = prompt_ids[None].to(device)
        self.stopped = False

    def choose(self, logits: Tensor) -> Tensor:
        """The next token, int64 ``[1]``, of logits ``[1, V]`` in float32."""
        scores = self._processors(self._ids, logits.clone())
        token = scores.argmax(-1)
        self._ids = torch.cat([self._ids, token[None]], dim=1)
        self.stopped = bool(self._stops) and bool(self._stops(self._ids, scores).all())
        return token


def end_ids(model: PreTrainedModel) -> list[int]:
    """Tokens that end an answer."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def add_end_id(model: PreTrainedModel, token_id: int) -> None:
    """Makes sure that a token ends answers: it ends those that are learned."""
    ends = end_ids(model)
    if token_id not in ends:
        model.generation_config.eos_token_id = [*ends, token_id]


def greedy_model(model: PreTrainedModel, max_new_tokens: int) -> PreTrainedModel:
    """The model, with :func:`greedy_config` as its generation config: ``generate`` reads no other then.

    Args:
        model: Is not changed.
        max_new_tokens: Longest answer.

    Returns:
        A copy of the outermost module alone; parameters and submodules are the model's.
    """
    found = copy.copy(model)
    found.generation_config = greedy_config(model, max_new_tokens)
    return found


def greedy_config(model: PreTrainedModel, max_new_tokens: int) -> GenerationConfig:
    """What ``generate`` is to do: the fields that a greedy answer obeys, nothing else of the model's own config."""
    own = model.generation_config
    fields = {name: getattr(own, name, None) for name in (*_OBEYED, *_SPECIAL_TOKENS)}
    if fields["pad_token_id"] is None and (ends := end_ids(model)):
        # As transformers would, but without a message at every answer.
        fields["pad_token_id"] = ends[0]
    return GenerationConfig(
        **{name: value for name, value in fields.items() if value is not None},
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
    )


def token_rules(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: Tensor, max_new_tokens: int
) -> TokenRules | None:
    """The rules of one answer, or None where the most probable token is always taken.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer, for stop strings.
        prompt_ids: The prompt, image tokens included, int64 ``[T]``.
        max_new_tokens: Longest answer.

    Returns:
        The rules, which keep the tokens chosen so far; for this one answer.
    """
    config = greedy_config(model, max_new_tokens)
    default = GenerationConfig()
    if all(getattr(config, name, None) == getattr(default, name, None) for name in _OBEYED):
        return None
    prompt_length, device = len(prompt_ids), model.device
    config.max_length = prompt_length + max_new_tokens
    if config.min_new_tokens is not None:
        config.min_length = prompt_length + config.min_new_tokens
    # transformers has no public way to them but `generate` itself.
    model._prepare_special_tokens(config, True, device=device)
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=prompt_length,
        encoder_input_ids=prompt_ids[None].to(device),
        device=device,
    )
    # Length and end tokens are the loops' own business.
    config.max_length = config._eos_token_tensor = None
    stops = model._get_stopping_criteria(
        generation_config=config, stopping_criteria=StoppingCriteriaList(), tokenizer=tokenizer
    )
    return TokenRules(processors, stops, prompt_ids, device)


def check_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Makes sure that the model's generation config can be obeyed; warns of fields that are not.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer.
        source: Names the model in messages.

    Raises:
        ConfigError: A field has a value that cannot be used.
    """
    own, default = model.generation_config, GenerationConfig()
    if ignored := [
        f"{name}={getattr(own, name)!r}"
        for name in _OTHER_ANSWERS
        if getattr(own, name, None) not in (None, getattr(default, name, None))
    ]:
        print_log(
            f"{source}: generation_config.json asks for {', '.join(ignored)}; answers are greedy here and do without",
            "current",
            logging.WARNING,
        )
    if model.device.type == "meta":  # transformers looks at values
        return
    prompt = torch.zeros(2, dtype=torch.int64)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    try:
        rules = token_rules(model, tokenizer, prompt, 2)
        if rules is not None:
            rules.choose(torch.zeros(1, vocabulary, device=model.device))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source}: generation_config.json cannot be obeyed: {error}. It sets {_set_fields(own)}; mend the field, "
            "or remove it"
        ) from error


def _set_fields(config: GenerationConfig) -> dict[str, Any]:
    default = GenerationConfig()
    found = {name: getattr(config, name, None) for name in _OBEYED}
    return {name: value for name, value in found.items() if value != getattr(default, name, None)}


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Makes sure that an answer may have a token.

    Args:
        max_new_tokens: As asked for.

    Raises:
        ConfigError: It may not.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"`max_new_tokens` is {max_new_tokens}; an answer needs at least 1")


def answer_room(next_position: int, limit: int | None, max_new_tokens: int, record_id: str) -> int:
    """Tokens that an answer may have: what was asked for, within the positions the language model knows.

    Args:
        next_position: Of the first token of the answer.
        limit: Number of positions; None: any.
        max_new_tokens: What was asked for.
        record_id: Named in errors.

    Returns:
        Number of tokens, at least 1.

    Raises:
        ConfigError: ``max_new_tokens`` is below 1.
        DataError: The prompt leaves no room.
    """
    check_max_new_tokens(max_new_tokens)
    if limit is None or next_position + max_new_tokens <= limit:
        return max_new_tokens
    if next_position >= limit:
        raise DataError(
            f"{record_id}: image and prompt take all {limit} positions of the language model: no room for an answer"
        )
    return limit - next_position


def warn_if_cut(num_tokens: int, last: int, ends: list[int], room: int, max_new_tokens: int) -> None:
    """Warns that an answer ended because the language model has no further positions.

    Args:
        num_tokens: Of the answer.
        last: Its last token.
        ends: Tokens that end an answer.
        room: From :func:`answer_room`.
        max_new_tokens: What was asked for.
    """
    if num_tokens == room < max_new_tokens and last not in ends:
        print_log(
            f"an answer was cut after {room} of at most {max_new_tokens} tokens: the language model has no positions "
            "beyond (max_position_embeddings)",
            "current",
            logging.WARNING,
        )
