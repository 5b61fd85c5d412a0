"""An answer with the masks that it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from flmm_detseg.structures.generation import Generation
from flmm_detseg.structures.states import Prediction


@dataclass(frozen=True)
class AnswerWithMasks:
    """A generated answer and a mask for each of its K mask tokens.

    Attributes:
        text: The answer with the tokens (``[SEG]``) in it.
        spans: Half-open character range of each token in ``text``.
        name_spans: Half-open character range of the words that each token belongs to; empty where there are none.
        prediction: K masks, boxes and scores; K may be 0 (a plain answer, or nothing that fits).
        generation: The answer's tokens with their log-probabilities and states.
        presence: Calibrated probability that the image shows what was asked for, also where the answer holds no token
            (``prediction.presence`` has it for each mask). None where the head has no presence head, and of an answer
            without a token to a question that did not ask for masks.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    name_spans: tuple[tuple[int, int], ...]
    prediction: Prediction
    generation: Generation
    presence: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The words that each token belongs to; empty texts where there are none."""
        return tuple(self.text[start:end] for start, end in self.name_spans)
