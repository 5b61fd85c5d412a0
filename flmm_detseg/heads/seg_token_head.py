"""A mask token's state prompts SAM's mask decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.answer_presence_head import AnswerPresenceHead
from flmm_detseg.heads.token_mask_head import TokenMaskHead
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.refiners import Refiner
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GroundingBatch, LMMStates, LogitMaps


@MODELS.register_module()
class SegTokenHead(TokenMaskHead):
    """LISA's head: the projected state of each ``[SEG]`` is SAM's only prompt (one sparse token, no mask, no box).

    The image encoder is frozen, and so is the prompt encoder, of which only fixed vectors are read.

    Args:
        sam: Refiner; its switches for text, mask and box do not matter here. Of a shared part what another head trains
            is trained too.
        hidden_size: d of the LMM.
        train_decoder: Train the mask decoder (as far as the one mask depends on it); False keeps it as it is.
        position: See :class:`TokenMaskHead`, as for what follows.
        token: Text of the token.
        loss_mask_weight: Factor of the cross-entropy (mean over pixels).
        loss_dice_weight: Factor of the dice loss.
        prompts_per_call: Most tokens in one call of the decoder when masks are predicted; equal masks up to rounding.
        presence: See :class:`TokenMaskHead`.

    Raises:
        ConfigError: Unknown ``position``, or ``prompts_per_call`` below 1.

    Source: LISA, arXiv 2308.00692, section 3.2.
    """

    def __init__(
        self,
        sam: Refiner,
        hidden_size: int,
        train_decoder: bool = True,
        position: str = "before",
        token: str = MASK_TOKEN,
        loss_mask_weight: float = 2.0,
        loss_dice_weight: float = 0.5,
        prompts_per_call: int = 32,
        presence: AnswerPresenceHead | None = None,
    ) -> None:
        super().__init__(
            hidden_size, sam.prompt_dim, position, token, loss_mask_weight, loss_dice_weight, presence
        )
        if prompts_per_call < 1:
            raise ConfigError(f"SegTokenHead: `prompts_per_call` is {prompts_per_call}; at least 1 is needed")
        self.prompts_per_call = prompts_per_call
        self.train_decoder = train_decoder
        self.sam = sam
        sam.requires_grad_(False)
        for parameter in self.trained_parameters(sam):
            parameter.requires_grad_(True)

    @property
    def lent_sam(self) -> Refiner:
        """The refiner."""
        return self.sam

    def trains(self, part: nn.Module) -> bool:
        """Everything but a refiner whose decoder is kept."""
        return self.train_decoder or all(module is not part for module in self.sam.modules())

    def trained_parameters(self, part: nn.Module) -> list[nn.Parameter]:
        """Of the refiner those of its mask decoder that the one mask depends on."""
        read = {id(parameter) for parameter in self.sam.model.mask_decoder.parameters()}
        read -= {id(p) for unread in self.sam.unread_by_single_mask for p in unread.parameters()}
        left_out = {id(parameter) for parameter in self.sam.parameters()} - read
        return [p for p in super().trained_parameters(part) if id(p) not in left_out]

    def keep_as_is(self, part: nn.Module) -> None:
        """Keeps the refiner's decoder as it is now."""
        if part is self.sam:
            self.sam.keep_box_decoder()

    def maps(self, prompts: Sequence[Tensor], states: LMMStates, batch: GroundingBatch) -> list[LogitMaps]:
        """See :class:`TokenMaskHead`: over SAM's square."""
        return self.sam.maps_from_tokens(
            [sample.image for sample in batch.samples],
            prompts,
            [sample.image_id for sample in batch.samples],
            kept=not self.train_decoder,
            prompts_per_call=None if torch.is_grad_enabled() else self.prompts_per_call,
        )
