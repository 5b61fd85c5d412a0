"""A mask token's state points at image features: masks without a SAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.answer_presence_head import AnswerPresenceHead
from flmm_detseg.heads.grids import by_grid
from flmm_detseg.heads.neck import VisionNeck
from flmm_detseg.heads.semantic_head import PyramidDecoder
from flmm_detseg.heads.token_mask_head import TokenMaskHead
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates, LogitMaps


@MODELS.register_module()
class PointerHead(TokenMaskHead):
    """The implicit pointer: mask logits are the product of a token's projected state and the features of each place.

    The features are those of the LMM's own vision tower, as a pyramid with a light decoder: a second way from
    ``[SEG]`` to a mask, for a model without a SAM.

    Args:
        neck: Pyramid. With a gate that looks at the task, name ``"reasoning"`` in its ``gate_tasks``.
        hidden_size: d of the LMM.
        embed_size: Width of state and features in the product.
        channels: Width of the decoder.
        rates: Dilations of the decoder's atrous branches, in cells of the finest level.
        position: See :class:`TokenMaskHead`, as for what follows.
        token: Text of the token.
        loss_mask_weight: Factor of the cross-entropy (mean over pixels).
        loss_dice_weight: Factor of the dice loss.
        presence: See :class:`TokenMaskHead`.

    Raises:
        ConfigError: Unknown ``position``, no rate, or ``embed_size`` below 1.

    Source: MaskFormer, arXiv 2107.06278, section 3.2 (product of a query with features of each pixel).
    """

    def __init__(
        self,
        neck: VisionNeck,
        hidden_size: int,
        embed_size: int = 256,
        channels: int = 128,
        rates: Sequence[int] = (1, 3, 6, 9),
        position: str = "before",
        token: str = MASK_TOKEN,
        loss_mask_weight: float = 2.0,
        loss_dice_weight: float = 0.5,
        presence: AnswerPresenceHead | None = None,
    ) -> None:
        if embed_size < 1 or not rates or min(rates) < 1:
            raise ConfigError(
                f"PointerHead: `embed_size` {embed_size} and `rates` {tuple(rates)} must be positive, at least one rate"
            )
        super().__init__(
            hidden_size, embed_size, position, token, loss_mask_weight, loss_dice_weight, presence
        )
        self.neck = neck
        self.decoder = PyramidDecoder(neck.channels, len(neck.strides), embed_size, channels, rates)
        self.bias = nn.Parameter(torch.zeros(()))

    @property
    def capture(self) -> CaptureSpec:
        """Last states of the answer, and vision maps of the neck's layers."""
        return CaptureSpec(answer=True, vision_layers=self.neck.vision_layers)

    @property
    def feature_neck(self) -> VisionNeck:
        """See :class:`Head`."""
        return self.neck

    def maps(self, prompts: Sequence[Tensor], states: LMMStates, batch: GroundingBatch) -> list[LogitMaps]:
        """See :class:`TokenMaskHead`: over the image, a cell for each pixel of the frame."""
        assert states.vision is not None  # `capture` asks for them
        size = self.neck.patch_size
        found = {
            place: LogitMaps(prompt.new_zeros(0, size, size, dtype=torch.float32), sample.image_size)
            for place, (prompt, sample) in enumerate(zip(prompts, batch.samples, strict=True))
        }
        wanted = [place for place, prompt in enumerate(prompts) if len(prompt)]
        if wanted:
            shown = LMMStates(vision=[states.vision[place] for place in wanted])
            for part in by_grid(shown, batch.part(wanted)):
                features = self.decoder(self.neck(part.states, part.batch)).float()
                frames = self.neck.frames(part.batch)
                for inner, maps, frame in zip(part.places, features, frames, strict=True):
                    place = wanted[inner]
                    prompt = prompts[place].float() / math.sqrt(len(maps))
                    logits = torch.einsum("kd,dhw->khw", prompt, maps) + self.bias
                    window = frame.crop(resize_maps(logits, frame.size))
                    found[place] = LogitMaps(window, frame.image_size)
        return [found[place] for place in range(len(batch))]
