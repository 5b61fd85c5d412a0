"""Phrase grounding: attention rows of a phrase become its mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.base import Head
from flmm_detseg.heads.losses import MaskLoss
from flmm_detseg.heads.unet_head import UNetHead
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.ops.masks import mask_scores, resize_maps, resize_masks
from flmm_detseg.refiners import SAMRefiner, TextPrompt
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import (
    CaptureSpec,
    GroundingBatch,
    HiddenRows,
    LMMStates,
    PatchGrid,
    Prediction,
    Sample,
)

TARGET_RESOLUTIONS = ("processor", "full")


@MODELS.register_module()
class PhraseGroundingHead(Head):
    """F-LMM's head: U-Net on the attention stack, then SAM with mask, box and text prompts.

    Trainable names are those of published F-LMM checkpoints (``mask_head.*``, ``sam.model.*``,
    ``text_proj.*``, ``text_layer_weights``). The two text parameters exist only where a refiner uses text.

    Args:
        mask_head: Coarse masks from attention stacks.
        sam: Refiner; None keeps the coarse masks.
        num_layers: L of the LMM.
        hidden_size: d of the LMM.
        text_dim: Width of SAM's prompts.
        target_resolution: ``"processor"`` (F-LMM: targets at the size the LMM's processor gives the image,
            both losses) or ``"full"`` (targets from the original image).
        loss_mask_weight: Factor of the cross-entropy of both masks.
        loss_dice_weight: Factor of the dice loss of both masks.
        keep_attention: Return the attention stack with each prediction.

    Raises:
        ConfigError: ``text_dim`` is not the refiner's, or the resolution is unknown.

    Source: F-LMM, arXiv 2406.05821, section 3.
    """

    tasks = frozenset({"phrase"})

    def __init__(
        self,
        mask_head: UNetHead,
        sam: SAMRefiner | None,
        num_layers: int,
        hidden_size: int,
        text_dim: int = 256,
        target_resolution: str = "processor",
        loss_mask_weight: float = 1.0,
        loss_dice_weight: float = 1.0,
        keep_attention: bool = False,
    ) -> None:
        super().__init__()
        if target_resolution not in TARGET_RESOLUTIONS:
            raise ConfigError(
                f"target_resolution {target_resolution!r} is none of {', '.join(TARGET_RESOLUTIONS)}"
            )
        self.mask_head = mask_head
        self.sam = sam
        self.target_resolution = target_resolution
        self.keep_attention = keep_attention
        self.mask_loss = MaskLoss(loss_mask_weight, loss_dice_weight)
        if self.uses_text:
            if text_dim != sam.prompt_dim:
                raise ConfigError(
                    f"text_dim={text_dim}, but the SAM model's prompts have {sam.prompt_dim} channels"
                )
            self.text_layer_weights = nn.Parameter(torch.ones(num_layers))
            self.text_proj = nn.Linear(hidden_size, text_dim)

    @property
    def uses_text(self) -> bool:
        """Whether the refiner is prompted with the phrase's hidden states."""
        return self.sam is not None and self.sam.use_text

    @property
    def capture(self) -> CaptureSpec:
        """Attention rows, and hidden rows where the refiner takes text."""
        return CaptureSpec(attention=True, hidden=self.uses_text)

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Losses on coarse and refined masks.

        Returns:
            ``loss_mask``, ``loss_dice``, ``accuracy``, ``aiou``, and the same with prefix ``sam_`` for
            refined masks.

        Raises:
            DataError: A sample has no masks, or not one per phrase.
        """
        coarse = self.coarse_logits(states.attention, batch)
        result = self.mask_loss(coarse, self._targets(batch, coarse))
        if self.sam is not None:
            refined = self._refine(coarse, states.hidden, batch.samples)
            figures = self.mask_loss(refined, self._targets(batch, refined))
            result.update({f"sam_{name}": value for name, value in figures.items()})
        return result

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Prediction]:
        """Masks, boxes and scores at original image size."""
        coarse = self.coarse_logits(states.attention, batch)
        refined: Sequence[Tensor | None] = [None] * len(batch)
        if self.sam is not None:
            refined = self._refine(coarse, states.hidden, batch.samples)
        predictions = []
        for index, sample in enumerate(batch.samples):
            logits = refined[index]
            if logits is None:
                logits = resize_maps(coarse[index], sample.image_size)
            masks = logits > 0
            prediction = Prediction(
                record_id=sample.record_id,
                image_size=sample.image_size,
                coarse_logits=coarse[index],
                refined_logits=refined[index],
                mask_logits=logits,
                masks=masks,
                boxes_xyxy=masks_to_boxes(masks),
                scores=mask_scores(logits, masks),
                attention=states.attention[index] if self.keep_attention else None,
            )
            predictions.append(prediction)
        return predictions

    def coarse_logits(self, stacks: Sequence[Tensor], batch: GroundingBatch) -> list[Tensor]:
        """Coarse mask logits with the processor's padding cut off.

        Args:
            stacks: Per sample ``[K_i, C, rows, cols]`` (``LMMStates.attention``).
            batch: Gives the geometry.

        Returns:
            Per sample float32 ``[K_i, h_i, w_i]`` covering the image.
        """
        logits = self.mask_head.forward_grouped(stacks)
        return [_crop(maps, inputs.grid) for maps, inputs in zip(logits, batch.inputs)]

    def text_prompt(self, hidden: HiddenRows) -> TextPrompt:
        """Learned mixture of the layers' hidden states (float32), projected into SAM's prompt space."""
        # Hidden states hold outliers: summing dozens of layers in half precision would lose the others.
        with torch.autocast(hidden.states.device.type, enabled=False):
            weights = self.text_layer_weights.float().softmax(dim=0)
            mixture = torch.einsum("l,lpd->pd", weights, hidden.states.float())
        return TextPrompt(self.text_proj(mixture.to(self.text_proj.weight.dtype)), hidden.phrase_ids)

    def _refine(
        self, coarse: Sequence[Tensor], hidden: Sequence[HiddenRows] | None, samples: Sequence[Sample]
    ) -> list[Tensor]:
        text = [self.text_prompt(rows) for rows in hidden] if self.uses_text else None
        images = [sample.image for sample in samples]
        return self.sam(images, coarse, text, [sample.image_id for sample in samples])

    def _targets(self, batch: GroundingBatch, logits: Sequence[Tensor]) -> list[Tensor]:
        """Target masks at the size of the predictions, bool, on their device."""
        targets = []
        for sample, inputs, maps in zip(batch.samples, batch.inputs, logits):
            if sample.masks is None or len(sample.masks) != len(maps):
                count = "no" if sample.masks is None else len(sample.masks)
                raise DataError(
                    f"{sample.record_id}: {count} target masks, {len(maps)} phrases; training needs one each"
                )
            masks = torch.from_numpy(sample.masks).to(maps.device)
            if self.target_resolution == "processor":
                masks = resize_masks(masks, inputs.grid.resized_size)
            targets.append(resize_masks(masks, tuple(maps.shape[-2:])))
        return targets


def _crop(maps: Tensor, grid: PatchGrid) -> Tensor:
    rows, cols = grid.crop_window(tuple(maps.shape[-2:]))
    return maps[:, rows, cols]
