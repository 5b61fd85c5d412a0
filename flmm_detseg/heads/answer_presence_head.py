"""Whether there is what a question asks to be shown: one logit from the state that begins the answer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.presence_score import PresenceScore
from flmm_detseg.registry import MODELS


@MODELS.register_module()
class AnswerPresenceHead(PresenceScore):
    """Says of a question that is answered with mask tokens whether there is what it asks for.

    It reads the last state of the prompt, which predicts the first token of the answer: all that the LMM knows of image
    and question before it says anything. So there is a probability for every answer, also for one that holds no mask
    token, and neither another question nor another pass is needed. Nothing of the LMM is changed by it: it reads,
    without gradient.

    Args:
        hidden_size: d of the LMM.
        width: Of its hidden layer.
        dropout: In training.
        keep_present: See :class:`~flmm_detseg.heads.presence_score.PresenceScore`.

    Raises:
        ConfigError: A number does not fit.
    """

    def __init__(
        self, hidden_size: int, width: int = 128, dropout: float = 0.0, keep_present: float = 0.97
    ) -> None:
        super().__init__(keep_present)
        if width < 1:
            raise ConfigError(f"AnswerPresenceHead: `width` is {width}; at least 1 is needed")
        if not 0 <= dropout < 1:
            raise ConfigError(f"AnswerPresenceHead: `dropout` is {dropout}; a share within [0, 1) is needed")
        self.norm = nn.LayerNorm(hidden_size)
        self.hidden = nn.Linear(hidden_size, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Logits before calibration.

        Args:
            states: ``[B, d]``: last states (after the final norm) of B prompts' last tokens, any dtype.

        Returns:
            float32 ``[B]``.
        """
        states = self.norm(states.detach().to(self.norm.weight.dtype))
        logits: Tensor = self.out(self.dropout(F.gelu(self.hidden(states))))
        return logits[:, 0].float()
