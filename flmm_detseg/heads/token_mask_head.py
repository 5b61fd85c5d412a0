"""A mask for each mask token of an answer: what heads of this kind share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.answer_presence_head import AnswerPresenceHead
from flmm_detseg.heads.base import Head
from flmm_detseg.heads.losses import MaskLoss
from flmm_detseg.heads.mask_prediction import mask_prediction
from flmm_detseg.structures import (
    CaptureSpec,
    GroundingBatch,
    LMMInputs,
    LMMStates,
    LogitMaps,
    Prediction,
    Sample,
)

POSITIONS = ("at", "before")


class TokenMaskHead(Head[Prediction]):
    """Reads the last state of each mask token, projects it, and lets a decoder make a mask of it.

    Tokens are found by their id, in the answer alone: what a question or an earlier turn holds is not read.

    Args:
        hidden_size: d of the LMM.
        prompt_size: Width of what the decoder takes.
        position: Whose state is read: ``"before"``, of the token before it, which predicts it (LISA), or ``"at"``, its
            own.
        token: Text of the token; the LMM must have it as one token (``added_tokens``).
        loss_mask_weight: Factor of the cross-entropy.
        loss_dice_weight: Factor of the dice loss.
        presence: Says whether there is what the question asks for: :attr:`AnswerWithMasks.presence
            <flmm_detseg.structures.AnswerWithMasks.presence>`. It learns from whether the reference answer has a mask.

    Attributes:
        project: From a state to what the decoder takes.

    Raises:
        ConfigError: Unknown ``position``.
    """

    # Joint answers may hold mask tokens, too.
    tasks = frozenset({"reasoning", "joint"})
    result_of = frozenset({"reasoning"})
    by_sample = frozenset({"loss_presence", "presence_accuracy"})
    optional_parts = ("presence",)

    def __init__(
        self,
        hidden_size: int,
        prompt_size: int,
        position: str,
        token: str,
        loss_mask_weight: float,
        loss_dice_weight: float,
        presence: AnswerPresenceHead | None = None,
    ) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise ConfigError(
                f"{type(self).__name__}: `position` is {position!r}; choose one of {', '.join(POSITIONS)}"
            )
        self.position = position
        self.reads_token = token
        self.project = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, prompt_size)
        )
        self.mask_loss = MaskLoss(loss_mask_weight, loss_dice_weight)
        self.presence = presence

    @property
    def presence_score(self) -> AnswerPresenceHead | None:
        """See :class:`Head`: of each question."""
        return self.presence

    def wants(self, sample: Sample) -> bool:
        """See :class:`Head`: of joint samples those whose phrases are mask tokens."""
        if sample.task != "joint":
            return super().wants(sample)
        return bool(sample.phrases) and sample.phrase_text(0) == self.reads_token

    @property
    def capture(self) -> CaptureSpec:
        """Last states of the answer."""
        return CaptureSpec(answer=True)

    @abstractmethod
    def maps(self, prompts: Sequence[Tensor], states: LMMStates, batch: GroundingBatch) -> list[LogitMaps]:
        """Mask logits with a gradient to the prompts.

        Args:
            prompts: Per sample ``[K_i, prompt_size]``; K_i may be 0.
            states: What :attr:`capture` asks for.
            batch: The samples.

        Returns:
            Per sample K_i maps.
        """

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Losses of the masks at the images' original sizes, and of presence.

        Args:
            states: With the last states of the answers.
            batch: Samples with one mask for each mask token; those of answers without one count for nothing.

        Returns:
            ``loss_mask``, ``loss_dice``, ``accuracy``, ``aiou``, see :class:`~flmm_detseg.heads.losses.MaskLoss`; with
            a presence head ``loss_presence`` (binary cross-entropy of its logits before calibration, mean over samples)
            and ``presence_accuracy``.

        Raises:
            DataError: Tokens, phrases and masks of a sample differ in number.
        """
        for sample in batch.samples:
            count = 0 if sample.masks is None else len(sample.masks)
            if count != len(sample.phrases):
                raise DataError(
                    f"{sample.record_id}: {count} target masks, {len(sample.phrases)} phrases; each {self.reads_token} "
                    "of the answer needs one of both"
                )
        logits = [maps.enlarge() for maps in self.maps(self.prompts(states, batch), states, batch)]
        targets = [
            torch.zeros_like(maps, dtype=torch.bool)
            if sample.masks is None
            else torch.from_numpy(sample.masks).to(maps.device)
            for sample, maps in zip(batch.samples, logits, strict=True)
        ]
        result = self.mask_loss(logits, targets)
        if self.presence is not None:
            result.update(self._presence_loss(states, batch))
        return result

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Prediction]:
        """Masks, boxes and scores at original image size, one of each for each mask token of the answer; all of them
        have the presence of what was asked for.
        """
        found = self.maps(self.prompts(states, batch), states, batch)
        presence: list[Tensor | None] = [None] * len(batch)
        if self.presence is not None:
            probabilities = self.presence.probability(torch.cat(self.presence_logits(states, batch)))
            presence = [
                value.expand(len(maps.maps)) for value, maps in zip(probabilities, found, strict=True)
            ]
        return [
            mask_prediction(
                sample, maps.unpadded(), None if maps.square is None else maps, presence=probability
            )
            for sample, maps, probability in zip(batch.samples, found, presence, strict=True)
        ]

    def presence_logits(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """What the presence head says of each question, before calibration; the answer after it is not read.

        Args:
            states: With the last states of the answers.
            batch: The samples.

        Returns:
            Per sample float32 ``[1]``.

        Raises:
            ConfigError: There is no presence head.
        """
        if self.presence is None:
            return super().presence_logits(states, batch)
        assert states.answer is not None  # `capture` asks for them
        # Row 0 is of the prompt's last token.
        logits: Tensor = self.presence(torch.stack([rows[0] for rows in states.answer]))
        return list(logits.split(1))

    def is_there(self, sample: Sample) -> Tensor:
        """Whether there is what the question asks for: its reference answer has a mask token.

        Args:
            sample: With its reference answer.

        Returns:
            bool ``[1]``.

        Raises:
            DataError: The answer is in words alone, as some of ReasonSeg's are, and would have none whatever is there.
        """
        if not _says_what_is_there(sample):
            raise DataError(
                f"{sample.record_id}: its answer is in words alone, so nothing says whether there is what it asks "
                "for; read the data with `text_share`=0"
            )
        return torch.tensor([bool(sample.phrases)])

    def _presence_loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        logits = torch.cat(self.presence_logits(states, batch))
        known = [place for place, sample in enumerate(batch.samples) if _says_what_is_there(sample)]
        there = [self.is_there(batch.samples[place]) for place in known]
        target = torch.cat([logits.new_zeros(0), *(value.to(logits) for value in there)])
        logits = logits[known]
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(batch)
        right = ((logits.detach() > 0) == (target > 0.5)).float()
        return {"loss_presence": loss, "presence_accuracy": right.sum() / max(len(known), 1)}

    def prompts(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """What the decoder is given.

        Args:
            states: With the last states of the answers.
            batch: The samples.

        Returns:
            Per sample ``[K_i, prompt_size]``, dtype of the head's weights (of autocast, where it is on).

        Raises:
            DataError: A sample has another number of mask tokens than of phrases.
        """
        assert states.answer is not None  # `capture` asks for them
        rows = [
            answer[self._rows(sample, inputs).to(answer.device)]
            for answer, sample, inputs in zip(states.answer, batch.samples, batch.inputs, strict=True)
        ]
        prompts: Tensor = self.project(torch.cat(rows).to(next(self.project.parameters()).dtype))
        return list(prompts.split([len(part) for part in rows]))

    def _rows(self, sample: Sample, inputs: LMMInputs) -> Tensor:
        """Rows of :attr:`LMMStates.answer` that are read, int64 ``[K]``."""
        assert self.token_id is not None, "the model gives it when it is built"
        places = (inputs.input_ids[inputs.prefix_length :] == self.token_id).nonzero().flatten()
        if len(places) != len(sample.phrases):
            raise DataError(
                f"{sample.record_id}: {len(places)} times {self.reads_token} in the answer's tokens, "
                f"{len(sample.phrases)} phrases; each needs a phrase that is exactly its characters"
            )
        # Row 0 is of the token before the answer.
        return places + (self.position == "at")


def _says_what_is_there(sample: Sample) -> bool:
    """Whether an answer without a mask token means that there is nothing."""
    return bool(sample.phrases) or sample.meta.get("form") != "text"
