"""Refines coarse masks with SAM 2.1: mask, box and text prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BaseImageProcessor, Sam2Model
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder, Sam2PromptEncoder

from flmm_detseg.compat.transformers5 import sam2_image_processor
from flmm_detseg.errors import ConfigError
from flmm_detseg.refiners.base import Refiner
from flmm_detseg.refiners.prompts import PointPrompt
from flmm_detseg.refiners.sam2_build import build_sam2, load_image_processor
from flmm_detseg.refiners.sam2_decoder import decode_masks, stable_choice
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import LogitMaps


@MODELS.register_module()
class SAM2Refiner(Refiner):
    """SAM 2.1 (transformers' ``Sam2Model``) as a :class:`~flmm_detseg.refiners.base.Refiner`.

    The square is the whole image, squeezed; there is no padding. The decoder also reads two maps of higher resolution,
    whose convolutions are the decoder's and are trained with it. Parts that phrases do not use are frozen too: the
    quality and object heads, the embedding of an absent memory, and embeddings of prompts that are switched off. So
    every trainable tensor gets a gradient.

    A phrase's mask is the single mask (or the candidate that overlaps the coarse mask most). It is never SAM 2's own
    choice by stability and quality, which training for phrases does not keep. Masks of boxes are SAM 2's own choice.

    Args:
        model: See :func:`build_sam2`.
        use_text: Append the text tokens of a phrase to the sparse prompts.
        use_mask: Give the coarse logits as mask prompt.
        use_box: Give the box of the coarse mask (whole image where it is empty).
        multimask_output: Decode three candidates and take the one that overlaps the coarse mask most; False
            takes the single mask.
        images_per_call: Most images in one call of the image encoder.
        dtype: Of the image encoder, which is frozen: ``"float32"`` or ``"bfloat16"``.
        attention: Of the image encoder: ``"sdpa"`` (torch's fused kernel) or ``"eager"`` (equal up to rounding, with
            attention maps in memory).
        image_processor: Of the model's pixels; None for SAM 2's own mean and standard deviation.

    Raises:
        ConfigError: All prompts are switched off, an unknown ``dtype`` or ``attention``, or an image processor whose
            size is not the model's.

    Source: SAM 2, arXiv 2408.00714; F-LMM, arXiv 2406.05821, section 3.3 (mask refiner).
    """

    def __init__(
        self,
        model: Sam2Model,
        use_text: bool = True,
        use_mask: bool = True,
        use_box: bool = True,
        multimask_output: bool = False,
        images_per_call: int = 4,
        dtype: str = "float32",
        attention: str = "sdpa",
        image_processor: BaseImageProcessor | None = None,
    ) -> None:
        super().__init__(
            model, use_text, use_mask, use_box, multimask_output, images_per_call, dtype, attention
        )
        size = {"height": self.side, "width": self.side}
        self.image_processor = image_processor or sam2_image_processor()(size=size)
        if dict(self.image_processor.size) != size:
            raise ConfigError(
                f"the image processor gives {dict(self.image_processor.size)}, the SAM 2 model takes {size}; use the "
                "preprocessor_config.json of the same model"
            )
        model.no_memory_embedding.requires_grad_(False)
        for part in self._without_use():
            part.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        variant: str | Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        use_text: bool = True,
        use_mask: bool = True,
        use_box: bool = True,
        multimask_output: bool = False,
        images_per_call: int = 4,
        dtype: str = "float32",
        attention: str = "sdpa",
    ) -> SAM2Refiner:
        """Model and refiner in one step, for configs; arguments as in ``build_sam2`` and the class."""
        model = build_sam2(variant, checkpoint)
        images = None if checkpoint is None else load_image_processor(checkpoint)
        return cls(
            model, use_text, use_mask, use_box, multimask_output, images_per_call, dtype, attention, images
        )

    def _without_use(self) -> list[nn.Module]:
        """Parts that no phrase's mask depends on."""
        prompts, decoder = self.model.prompt_encoder, self.model.mask_decoder
        parts = [decoder.iou_prediction_head, decoder.pred_obj_score_head]
        parts.append(prompts.no_mask_embed if self.use_mask else prompts.mask_embed)
        return parts if self.use_box else [*parts, prompts.point_embed]

    @property
    def unread_by_single_mask(self) -> list[nn.Module]:
        """See :class:`Refiner`; and the object head."""
        return [*super().unread_by_single_mask, self.model.mask_decoder.pred_obj_score_head]

    @property
    def image_encoder(self) -> nn.Module:
        """Hiera with its feature pyramid."""
        return self.model.vision_encoder

    @property
    def side(self) -> int:
        """Side of the square into which images are squeezed, pixels."""
        return self.model.prompt_encoder.input_image_size

    @property
    def prompt_dim(self) -> int:
        """D, width of a text token."""
        return self.model.prompt_encoder.hidden_size

    @property
    def positions(self) -> nn.Module:
        """Positional encoding of the prompt encoder."""
        return self.model.prompt_encoder.shared_embedding

    @property
    def exact_buffers(self) -> Sequence[tuple[nn.Module, str]]:
        """Frequencies of the positions, of prompts and of the image: phases reach tens of radians."""
        owners = (self.positions, self.model.shared_image_embedding)
        return tuple((owner, "positional_embedding") for owner in owners)

    def _use_attention(self, attention: str) -> None:
        self.model.vision_encoder.set_attn_implementation(attention)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """RGB uint8 ``[H, W, 3]`` to normalised pixels of the squeezed image, float32 ``[3, S, S]``, model's device."""
        # The layout is said, because a picture of one or three rows could be taken for channels.
        pixels = self.image_processor(image, input_data_format="channels_last", return_tensors="pt")
        return pixels["pixel_values"][0].to(self.model.device)

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image inside the square: all of it."""
        return self.side, self.side

    def mask_prompt(self, logits: Tensor, image_size: tuple[int, int], lowest: float) -> Tensor:
        """See :class:`Refiner`; resized as ``Sam2Model`` does. The square has no padding, so nothing is ``lowest``."""
        size = tuple(self.model.prompt_encoder.mask_input_size)
        if tuple(logits.shape[-2:]) == size:
            return logits
        maps = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False, antialias=True)
        return maps[:, 0]

    def dense_pe(self) -> Tensor:
        """Positional encoding of the image embedding, float32 ``[1, D, e, e]``."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.get_image_wide_positional_embeddings()

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Refiner`: maps ``[U, D, ...]`` of 4e, 2e and e rows, the last with the mark of no memory."""
        encoder = self.model.vision_encoder
        *finer, embeddings = encoder(pixels.to(encoder.dtype)).fpn_hidden_states
        return (*finer, embeddings + self.model.no_memory_embedding.reshape(1, -1, 1, 1))

    def decoder_features(self, decoder: Sam2MaskDecoder, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See :class:`Refiner`: maps of higher resolution go through the decoder's convolutions once an image."""
        fine, middle, embeddings = (level.to(decoder.mask_tokens.weight.dtype) for level in features)
        return decoder.conv_s0(fine), decoder.conv_s1(middle), embeddings

    def encode_prompts(
        self,
        encoder: Sam2PromptEncoder,
        boxes_xyxy: Tensor | None,
        masks: Tensor | None,
        points: PointPrompt | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Refiner`: a box is three tokens, the last an empty point; neither box nor points are two empty
        points.
        """
        xy = labels = boxes = None
        if points is not None:
            xy, labels = points.xy[:, None], points.labels[:, None]
        elif boxes_xyxy is None:
            device = encoder.not_a_point_embed.weight.device
            xy = torch.zeros(1, 1, 1, 2, device=device)
            labels = -torch.ones(1, 1, 1, dtype=torch.int32, device=device)
        if boxes_xyxy is not None:
            boxes = boxes_xyxy[:, None].clone()  # moved by half a pixel in place
        sparse, dense = encoder(input_points=xy, input_labels=labels, input_boxes=boxes, input_masks=masks)
        return sparse[:, 0], dense

    def decode(
        self,
        decoder: Sam2MaskDecoder,
        features: tuple[Tensor, ...],
        sparse: Tensor,
        sparse_mask: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Refiner`."""
        dtype = decoder.mask_tokens.weight.dtype
        positions = self.dense_pe().to(dtype)
        return decode_masks(decoder, features, positions, sparse.to(dtype), sparse_mask, dense.to(dtype))

    def choice(self, logits: Tensor, quality: Tensor) -> Tensor:
        """See :class:`Refiner`: by stability and quality, where the model's config says so."""
        decoder = self.model.mask_decoder
        if not decoder.dynamic_multimask_via_stability:
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        delta, threshold = (
            decoder.dynamic_multimask_stability_delta,
            decoder.dynamic_multimask_stability_thresh,
        )
        return stable_choice(logits, quality, delta, threshold)

    def enlarge(self, candidates: Tensor, image_size: tuple[int, int]) -> Tensor:
        """See :class:`Refiner`."""
        return F.interpolate(candidates, image_size, mode="bilinear", align_corners=False)

    def make_maps(self, low_res: Tensor, image_size: tuple[int, int]) -> LogitMaps:
        """See :class:`Refiner`; the maps cover the image."""
        return LogitMaps(low_res, image_size, channels=3 if self.multimask_output else 1)
