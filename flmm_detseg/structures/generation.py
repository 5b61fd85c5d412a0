"""An answer with what the LMM thought while it wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flmm_detseg.structures.states import LMMInputs


@dataclass(frozen=True)
class Generation:
    """A greedy answer and the rows of its tokens, caught in the step in which each token was the query.

    A counts generated tokens, the end token included; N counts image tokens that are patches, level after level.

    Attributes:
        text: The answer: special tokens left out, no white space around it.
        token_ids: int64 ``[A]``, CPU.
        token_offsets: Character range ``(start, end)`` of each token in ``text``, half-open. Starts and ends never
            fall. Tokens that spell one character together all have its range; special tokens have an empty one.
        log_probs: float32 ``[A]``, CPU: log-probability of each token when it was chosen.
        best_log_probs: The same of the token that was the likeliest then.
        inputs: Image, prompt and generated tokens as one teacher-forced sequence without phrases.
        attention: ``[C, A, N]`` in the LMM's dtype, in [0, 1]: softmax over all keys, cut to the patches; channels
            in the order of ``LMMAdapter.attention_pairs``. None where the capture did not ask for it.
        hidden: ``[n, A, d]`` in the LMM's dtype: states after :attr:`hidden_layers`. None as above.
        hidden_layers: Decoder layers of ``hidden``, see :attr:`HiddenRows.layers`.
        vision: Per asked layer ``[d_v, rows, cols]`` of the base (squared) image. None as above.
        answer_states: ``[A + 1, d]`` in the LMM's dtype: last states (after the final norm) of the prompt's last token
            and of each generated one, as :attr:`LMMStates.answer`. None as above.
    """

    text: str
    token_ids: Tensor
    token_offsets: tuple[tuple[int, int], ...]
    log_probs: Tensor
    best_log_probs: Tensor
    inputs: LMMInputs
    attention: Tensor | None = None
    hidden: Tensor | None = None
    hidden_layers: tuple[int, ...] = ()
    vision: dict[int, Tensor] | None = None
    answer_states: Tensor | None = None
