"""Refines coarse masks with segment-anything: mask, box and text prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn
from torchvision.transforms.functional import resize, to_pil_image

from flmm_detseg.ops.letterbox import round_longest_side
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.refiners.base import Refiner
from flmm_detseg.refiners.prompts import PointPrompt
from flmm_detseg.refiners.sam_attention import use_sdpa
from flmm_detseg.refiners.sam_build import SamSizes, build_sam
from flmm_detseg.refiners.sam_decoder import decode_masks
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import LogitMaps


@MODELS.register_module()
class SAMRefiner(Refiner):
    """Segment-anything as a :class:`~flmm_detseg.refiners.base.Refiner`.

    The square has the image at the top left, scaled to its longest side, and padding. Ten trainable tensors never get a
    gradient because their prompts and outputs are not used (point embeddings 0 and 1, ``not_a_point_embed``,
    ``no_mask_embed``, the quality head): they stay trainable because published checkpoints contain them, and
    ``GroundingLMM.loss`` gives them the gradient 0.

    Args:
        model: A segment-anything model, see :func:`build_sam`.
        use_text: Append the text tokens of a phrase to the sparse prompts.
        use_mask: Give the coarse logits as mask prompt.
        use_box: Give the box of the coarse mask (whole image where it is empty).
        multimask_output: Decode three candidates and take the one that overlaps the coarse mask most; False
            takes SAM's single mask.
        images_per_call: Most images in one call of the image encoder (its attention maps are large).
        dtype: Of the image encoder, which is frozen: ``"float32"``, or ``"bfloat16"`` for half its memory and a
            fraction of its time, also in training. Prompts and decoder, which are trained and stored, stay as they
            are. What it changes: ``docs/benchmarks.md``.
        attention: Of the image encoder: ``"eager"`` (segment-anything's own code) or ``"sdpa"`` (torch's fused kernel,
            equal up to rounding).

    Raises:
        ConfigError: All prompts are switched off, or an unknown ``dtype`` or ``attention``.

    Source: F-LMM, arXiv 2406.05821, section 3.3 (mask refiner); SAM, arXiv 2304.02643.
    """

    def __init__(
        self,
        model: Sam,
        use_text: bool = True,
        use_mask: bool = True,
        use_box: bool = True,
        multimask_output: bool = False,
        images_per_call: int = 4,
        dtype: str = "float32",
        attention: str = "eager",
    ) -> None:
        super().__init__(
            model, use_text, use_mask, use_box, multimask_output, images_per_call, dtype, attention
        )

    @classmethod
    def from_pretrained(
        cls,
        variant: str | SamSizes | None = None,
        checkpoint: str | None = None,
        use_text: bool = True,
        use_mask: bool = True,
        use_box: bool = True,
        multimask_output: bool = False,
        images_per_call: int = 4,
        dtype: str = "float32",
        attention: str = "eager",
    ) -> SAMRefiner:
        """Model and refiner in one step, for configs; arguments as in ``build_sam`` and the class."""
        model = build_sam(variant, checkpoint)
        return cls(model, use_text, use_mask, use_box, multimask_output, images_per_call, dtype, attention)

    @property
    def image_encoder(self) -> nn.Module:
        """SAM's vision transformer with its neck."""
        return self.model.image_encoder

    @property
    def side(self) -> int:
        """Side of SAM's padded square, pixels."""
        return self.model.image_encoder.img_size

    @property
    def prompt_dim(self) -> int:
        """D, width of a text token."""
        return self.model.prompt_encoder.embed_dim

    @property
    def positions(self) -> nn.Module:
        """Positional encoding of the prompt encoder."""
        return self.model.prompt_encoder.pe_layer

    @property
    def exact_buffers(self) -> Sequence[tuple[nn.Module, str]]:
        """Frequencies of the positions, mean and standard deviation of pixels."""
        # Phases of the positional encoding reach tens of radians: half precision (a bf16 engine casts every
        # buffer) would change them visibly, so these frequencies keep their precision.
        # The pixel mean and standard deviation (123.675 would become 123.5) keep theirs too.
        return (
            (self.positions, "positional_encoding_gaussian_matrix"),
            (self.model, "pixel_mean"),
            (self.model, "pixel_std"),
        )

    def _use_attention(self, attention: str) -> None:
        if attention == "sdpa":
            use_sdpa(self.model.image_encoder)

    def encode_images(
        self, images: Sequence[np.ndarray], image_keys: Sequence[str | None] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Image embeddings, each different image once.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            image_keys: As in :meth:`refine`.

        Returns:
            ``[U, D, e, e]`` and, per sample, the row that belongs to it.

        Raises:
            DataError: Two different images have one key.
        """
        (embeddings,), index = self.image_features(images, image_keys)
        return embeddings, index

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor]:
        """See :class:`Refiner`: one embedding ``[U, D, e, e]``."""
        return (self.model.image_encoder(pixels.to(self.model.image_encoder.pos_embed.dtype)),)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """RGB uint8 ``[H, W, 3]`` to normalised, padded pixels, float32 ``[3, S, S]``, model's device."""
        size = self.input_size((image.shape[0], image.shape[1]))
        resized = torch.from_numpy(np.array(resize(to_pil_image(image), size))).to(self.model.device)
        return self.model.preprocess(resized.permute(2, 0, 1).float())

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image inside SAM's square: rounded, at least 1 pixel."""
        return round_longest_side(image_size, self.side)

    def mask_prompt(self, logits: Tensor, image_size: tuple[int, int], lowest: float) -> Tensor:
        """See :class:`Refiner`: as large as the image inside the square, padded, then at the prompt's size."""
        input_size = self.input_size(image_size)
        padding = (0, self.side - input_size[1], 0, self.side - input_size[0])
        square = F.pad(resize_maps(logits, input_size), padding, value=lowest)
        return resize_maps(square, self.model.prompt_encoder.mask_input_size)

    def dense_pe(self) -> Tensor:
        """Positional encoding of the image embedding, float32 ``[1, D, e, e]``."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.prompt_encoder.get_dense_pe()

    def encode_prompts(
        self,
        encoder: PromptEncoder,
        boxes_xyxy: Tensor | None,
        masks: Tensor | None,
        points: PointPrompt | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Refiner`: a box is two tokens, and points without a box have an empty one after them."""
        return encoder(points=points, boxes=boxes_xyxy, masks=masks)

    def decoder_features(self, decoder: MaskDecoder, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See :class:`Refiner`."""
        return tuple(level.to(decoder.mask_tokens.weight.dtype) for level in features)

    def decode(
        self,
        decoder: MaskDecoder,
        features: tuple[Tensor, ...],
        sparse: Tensor,
        sparse_mask: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Refiner`."""
        (embeddings,) = features
        dtype = decoder.mask_tokens.weight.dtype
        return decode_masks(
            decoder, embeddings, self.dense_pe().to(dtype), sparse.to(dtype), sparse_mask, dense.to(dtype)
        )

    def choice(self, logits: Tensor, quality: Tensor) -> Tensor:
        """See :class:`Refiner`: always the first."""
        return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def enlarge(self, candidates: Tensor, image_size: tuple[int, int]) -> Tensor:
        """See :class:`Refiner`."""
        return self.model.postprocess_masks(candidates, self.input_size(image_size), image_size)

    def make_maps(self, low_res: Tensor, image_size: tuple[int, int]) -> LogitMaps:
        """See :class:`Refiner`."""
        channels = 3 if self.multimask_output else 1
        return LogitMaps(low_res, image_size, self.side, self.input_size(image_size), channels)
