"""One greedy answer after a prompt that has run, with or without the background cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flmm_detseg.lmms.capture.answer_text import answered, text_and_offsets
from flmm_detseg.lmms.capture.decoder import AnswerRows, DecodedToken, PrefixDecoder
from flmm_detseg.lmms.capture.token_rules import answer_room, end_ids, token_rules, warn_if_cut
from flmm_detseg.structures import Generation, LMMInputs


class GreedyAnswer:
    """Chooses the tokens of one answer and turns them into text and rows.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer.
        question: Image and prompt in the LMM's own order.
        rows: What is kept of each token.
        next_position: Rotary position of the first token.
        position_limit: Positions that the language model knows; None: any.
        max_new_tokens: Longest answer.

    Attributes:
        tokens: Those chosen so far.

    Raises:
        ConfigError: ``max_new_tokens`` is below 1.
        DataError: The prompt leaves no room for an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        question: LMMInputs,
        rows: AnswerRows,
        next_position: int,
        position_limit: int | None,
        max_new_tokens: int,
    ) -> None:
        self._model, self._tokenizer, self._question, self._rows = model, tokenizer, question, rows
        self._next_position, self._max_new_tokens = next_position, max_new_tokens
        self._room = answer_room(next_position, position_limit, max_new_tokens, question.record_id)
        self.tokens: list[DecodedToken] = []

    @property
    def token_ids(self) -> list[int]:
        """Tokens chosen so far, the end token included."""
        return [token.token_id for token in self.tokens]

    @property
    def text(self) -> str:
        """Text of the tokens so far: special ones left out, white space around it kept."""
        return self._decode(self.token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def run(self, decoder: PrefixDecoder, last_state: torch.Tensor) -> Iterator[DecodedToken]:
        """Chooses token after token, each handed out at once.

        Args:
            decoder: After the prompt.
            last_state: Last hidden state of the prompt, ``[1, 1, d]``.

        Yields:
            Each token; all of them are in :attr:`tokens` afterwards.
        """
        for _, token in self.run_together([self], decoder, last_state):
            yield token

    @staticmethod
    def run_together(
        answers: Sequence[GreedyAnswer], decoder: PrefixDecoder, last_states: torch.Tensor
    ) -> Iterator[tuple[int, DecodedToken]]:
        """As :meth:`run`, several answers of one model in step.

        Args:
            answers: Which keep the same of each token.
            decoder: After their prompts.
            last_states: Last hidden state of each prompt, ``[B, 1, d]``.

        Yields:
            Number of the answer, and its next token.
        """
        model = answers[0]._model
        ends = end_ids(model)
        for number, token in decoder.decode_together(
            last_states,
            [answer._next_position for answer in answers],
            end_ids=ends,
            max_new_tokens=[answer._room for answer in answers],
            rows=[answer._rows for answer in answers] if answers[0]._rows.wanted else None,
            rules=[
                token_rules(model, answer._tokenizer, answer._question.input_ids, answer._room)
                for answer in answers
            ],
        ):
            answers[number].tokens.append(token)
            yield number, token
        for answer in answers:
            warn_if_cut(
                len(answer.tokens), answer.tokens[-1].token_id, ends, answer._room, answer._max_new_tokens
            )

    def generation(self, vision: dict[int, torch.Tensor] | None) -> Generation:
        """The answer with its rows.

        Args:
            vision: Maps of the image's vision states, by layer, float ``[D, rows, cols]``; None where none were asked
                for.

        Returns:
            Text, tokens with their log-probabilities, and what was captured of them.
        """
        text, offsets = text_and_offsets(self.token_ids, self._decode)
        token_ids = torch.tensor(self.token_ids)
        attention, hidden, answer_states = self._rows.stacked()
        return Generation(
            text=text,
            token_ids=token_ids,
            token_offsets=offsets,
            log_probs=torch.stack([token.log_prob for token in self.tokens]),
            best_log_probs=torch.stack([token.best_log_prob for token in self.tokens]),
            inputs=answered(self._question, token_ids),
            attention=attention,
            hidden=hidden,
            hidden_layers=self._rows.hidden_layers,
            vision=vision,
            answer_states=answer_states,
        )
