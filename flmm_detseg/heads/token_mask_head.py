"""A mask for each mask token of an answer: what heads of this kind share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
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

    Attributes:
        project: From a state to what the decoder takes.

    Raises:
        ConfigError: Unknown ``position``.
    """

    tasks = frozenset({"reasoning"})
    result_of = frozenset({"reasoning"})

    def __init__(
        self,
        hidden_size: int,
        prompt_size: int,
        position: str,
        token: str,
        loss_mask_weight: float,
        loss_dice_weight: float,
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
        """Losses of the masks at the images' original sizes.

        Args:
            states: With the last states of the answers.
            batch: Samples with one mask for each mask token; those of answers without one count for nothing.

        Returns:
            ``loss_mask``, ``loss_dice``, ``accuracy``, ``aiou``, see :class:`~flmm_detseg.heads.losses.MaskLoss`.

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
        return self.mask_loss(logits, targets)

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Prediction]:
        """Masks, boxes and scores at original image size, one of each for each mask token of the answer."""
        found = self.maps(self.prompts(states, batch), states, batch)
        return [
            mask_prediction(sample, maps.unpadded(), None if maps.square is None else maps)
            for sample, maps in zip(batch.samples, found, strict=True)
        ]

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
