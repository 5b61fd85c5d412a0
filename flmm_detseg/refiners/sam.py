"""Refines coarse masks with segment-anything: mask, box and text prompts, batched over phrases and images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.ops.boxes import masks_to_boxes, scale_boxes
from flmm_detseg.ops.masks import mask_iou, resize_maps
from flmm_detseg.refiners.sam_build import SamSizes, build_sam
from flmm_detseg.refiners.sam_decoder import decode_masks
from flmm_detseg.registry import MODELS


class TextPrompt(NamedTuple):
    """Text tokens of the phrases of one sample, already in the prompt space.

    Attributes:
        tokens: ``[P, D]``.
        phrase_ids: int64 ``[P]``, phrase of each token.
    """

    tokens: Tensor
    phrase_ids: Tensor


class MaskPrompt(NamedTuple):
    """What coarse masks of one image become for SAM.

    Attributes:
        mask_logits: float32 ``[K, 1, 4e, 4e]`` over SAM's padded square.
        boxes_xyxy: float32 ``[K, 4]`` in pixels of that square, no gradient.
        masks: The coarse masks at original size, bool ``[K, H, W]``.
    """

    mask_logits: Tensor
    boxes_xyxy: Tensor
    masks: Tensor


@MODELS.register_module()
class SAMRefiner(nn.Module):
    """Coarse mask logits in, mask logits at original image size out.

    The image encoder is frozen (evaluation mode, no gradient); prompt encoder and mask decoder are trained.
    Gradients reach the coarse logits through the mask prompt. Ten trainable tensors never get one because
    their prompts and outputs are not used (point embeddings 0 and 1, ``not_a_point_embed``,
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

    Raises:
        ConfigError: All prompts are switched off.

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
    ) -> None:
        super().__init__()
        if not (use_text or use_mask or use_box):
            raise ConfigError("SAMRefiner needs at least one of use_text, use_mask, use_box")
        self.model = model
        self.use_text = use_text
        self.use_mask = use_mask
        self.use_box = use_box
        self.multimask_output = multimask_output
        self.images_per_call = images_per_call
        self.box_parts: nn.ModuleDict | None = None
        self.resize = ResizeLongestSide(model.image_encoder.img_size)
        model.image_encoder.requires_grad_(False).eval()

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
    ) -> SAMRefiner:
        """Model and refiner in one step, for configs; arguments as in ``build_sam`` and the class."""
        model = build_sam(variant, checkpoint)
        return cls(model, use_text, use_mask, use_box, multimask_output, images_per_call)

    @property
    def prompt_dim(self) -> int:
        """D, width of a text token."""
        return self.model.prompt_encoder.embed_dim

    def train(self, mode: bool = True) -> SAMRefiner:
        """Switches all but the image encoder, which stays in evaluation mode."""
        super().train(mode)
        self.model.image_encoder.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SAMRefiner:
        # Phases of the positional encoding reach tens of radians: half precision (a bf16 engine casts every
        # buffer) would change them visibly, so these frequencies keep their precision.
        # The pixel mean and standard deviation (123.675 would become 123.5) keep theirs too.
        layer = self.model.prompt_encoder.pe_layer
        owners = {
            "positional_encoding_gaussian_matrix": layer,
            "pixel_mean": self.model,
            "pixel_std": self.model,
        }
        before = {name: getattr(owner, name) for name, owner in owners.items()}
        super()._apply(fn, recurse)
        for name, owner in owners.items():
            old, device = before[name], getattr(owner, name).device
            if getattr(owner, name).dtype != old.dtype and not old.is_meta:
                setattr(owner, name, old.to(device))
        return self

    def forward(
        self,
        images: Sequence[np.ndarray],
        coarse_logits: Sequence[Tensor],
        text: Sequence[TextPrompt] | None = None,
        image_keys: Sequence[str | None] | None = None,
    ) -> list[Tensor]:
        """Refines the masks of a batch in one call of the decoder.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            coarse_logits: Per sample ``[K_i, h_i, w_i]`` covering the image (un-padded); K_i may be 0.
            text: Per sample; needed with ``use_text``, ignored without.
            image_keys: Per sample; samples with equal non-None keys show the same image, encoded once.

        Returns:
            Per sample float32 logits ``[K_i, H_i, W_i]``.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        counts = [len(logits) for logits in coarse_logits]
        if sum(counts) == 0:
            return [
                logits.new_zeros(0, *size, dtype=torch.float32) for logits, size in zip(coarse_logits, sizes)
            ]
        embeddings, image_index = self.encode_images(images, image_keys)
        prompts = [self.make_prompt(logits, size) for logits, size in zip(coarse_logits, sizes)]
        sparse, sparse_mask, dense = self._encode_prompts(prompts, text, sum(counts))
        per_prompt = torch.tensor(image_index, device=embeddings.device).repeat_interleave(
            torch.tensor(counts, device=embeddings.device)
        )
        decoder_dtype = self.model.mask_decoder.mask_tokens.weight.dtype
        low_res, _ = decode_masks(
            self.model.mask_decoder,
            embeddings.to(decoder_dtype)[per_prompt],
            self.dense_pe().to(decoder_dtype),
            sparse.to(decoder_dtype),
            sparse_mask,
            dense.to(decoder_dtype),
        )
        low_res = low_res[:, 1:] if self.multimask_output else low_res[:, :1]
        pieces = zip(low_res.float().split(counts), prompts, sizes)
        return [self._select(candidates, prompt, size) for candidates, prompt, size in pieces]

    def keep_box_decoder(self) -> None:
        """Keeps prompt encoder and mask decoder as they are now, frozen, for :meth:`masks_from_boxes`.

        Training for phrases teaches the decoder to expect text and mask prompts; of boxes alone it then makes
        little (tiny SAM on TinyWorld: mean IoU 0.10 instead of 0.84). Call it before training or loading.
        """
        kept = {"prompt_encoder": self.model.prompt_encoder, "mask_decoder": self.model.mask_decoder}
        self.box_parts = nn.ModuleDict(copy.deepcopy(kept)).requires_grad_(False)
        self.box_parts["prompt_encoder"].pe_layer = self.model.prompt_encoder.pe_layer  # see _apply

    @torch.no_grad()
    def masks_from_boxes(
        self,
        images: Sequence[np.ndarray],
        boxes_xyxy: Sequence[Tensor],
        image_keys: Sequence[str | None] | None = None,
    ) -> list[Tensor]:
        """SAM's own masks of boxes: no mask and no text prompt, whatever the switches say.

        By the parts of :meth:`keep_box_decoder`, where it was called, else by those that are trained for phrases.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            boxes_xyxy: Per sample float ``[N_i, 4]`` in original pixels; N_i may be 0.
            image_keys: As in :meth:`forward`.

        Returns:
            Per sample float32 logits ``[N_i, H_i, W_i]``, no gradient.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        wanted = [index for index, boxes in enumerate(boxes_xyxy) if len(boxes)]
        results = [boxes.new_zeros(0, *size, dtype=torch.float32) for boxes, size in zip(boxes_xyxy, sizes)]
        if not wanted:
            return results
        keys = None if image_keys is None else [image_keys[index] for index in wanted]
        embeddings, rows = self.encode_images([images[index] for index in wanted], keys)
        prompt_encoder, mask_decoder = self.model.prompt_encoder, self.model.mask_decoder
        if self.box_parts is not None:
            prompt_encoder, mask_decoder = self.box_parts["prompt_encoder"], self.box_parts["mask_decoder"]
        dtype = mask_decoder.mask_tokens.weight.dtype
        dense_pe = self.dense_pe().to(dtype)
        for index, row in zip(wanted, rows):
            input_size = self.input_size(sizes[index])
            boxes = scale_boxes(boxes_xyxy[index].float(), sizes[index], input_size)
            with torch.autocast(self.model.device.type, enabled=False):
                sparse, dense = prompt_encoder(points=None, boxes=boxes, masks=None)
            low_res, _ = decode_masks(
                mask_decoder,
                embeddings[row].to(dtype).expand(len(boxes), -1, -1, -1),
                dense_pe,
                sparse.to(dtype),
                torch.ones(sparse.shape[:2], dtype=torch.bool, device=sparse.device),
                dense.to(dtype),
            )
            maps = self.model.postprocess_masks(low_res[:, :1].float(), input_size, sizes[index])
            results[index] = maps[:, 0]
        return results

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[np.ndarray], image_keys: Sequence[str | None] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Image embeddings, each different image once.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            image_keys: As in :meth:`forward`.

        Returns:
            ``[U, D, e, e]`` and, per sample, the row that belongs to it.
        """
        keys: Sequence[str | None] = image_keys if image_keys is not None else [None] * len(images)
        # A key alone is not trusted: two pictures under one name would share an embedding.
        owner: dict[str | None, int] = {}
        for position, key in enumerate(keys):
            first_position = owner.setdefault(key, position)
            if key is not None and not np.array_equal(images[first_position], images[position]):
                raise DataError(
                    f"two different images share the image id {key!r} in one batch; ids must be unique"
                )
        rows: dict[object, int] = {}
        index = [
            rows.setdefault(position if key is None else key, len(rows)) for position, key in enumerate(keys)
        ]
        first = [index.index(row) for row in range(len(rows))]
        pixels = torch.stack([self.preprocess(images[position]) for position in first])
        pixels = pixels.to(self.model.image_encoder.pos_embed.dtype)
        parts = pixels.split(self.images_per_call)
        return torch.cat([self.model.image_encoder(part) for part in parts]), index

    def preprocess(self, image: np.ndarray) -> Tensor:
        """RGB uint8 ``[H, W, 3]`` to normalised, padded pixels, float32 ``[3, S, S]``, model's device."""
        resized = torch.from_numpy(self.resize.apply_image(image)).to(self.model.device)
        return self.model.preprocess(resized.permute(2, 0, 1).float())

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image inside SAM's square."""
        return ResizeLongestSide.get_preprocess_shape(*image_size, self.resize.target_length)

    def make_prompt(self, coarse_logits: Tensor, image_size: tuple[int, int]) -> MaskPrompt:
        """Prompts from the coarse masks of one image, on their device.

        Args:
            coarse_logits: ``[K, h, w]`` covering the image; K may be 0.
            image_size: Original ``(H, W)``.

        Returns:
            The mask prompts (gradients flow back to the logits), boxes, and the coarse masks themselves.
        """
        side = self.resize.target_length
        input_size = self.input_size(image_size)
        logits = coarse_logits.float()
        # Not above any mask of the image, and clearly background: the padding never looks like an object.
        lowest = min(-1.0, float(logits.detach().min())) if logits.numel() else -1.0
        padding = (0, side - input_size[1], 0, side - input_size[0])
        square = F.pad(resize_maps(logits, input_size), padding, value=lowest)
        mask_logits = resize_maps(square, self.model.prompt_encoder.mask_input_size)

        masks = resize_maps(logits.detach().sigmoid(), image_size) > 0.5
        boxes = masks_to_boxes(masks)
        whole = boxes.new_tensor([0, 0, image_size[1], image_size[0]])
        boxes = torch.where(masks.any((-2, -1), keepdim=True)[:, 0], boxes, whole)
        return MaskPrompt(mask_logits[:, None], scale_boxes(boxes, image_size, input_size), masks)

    def dense_pe(self) -> Tensor:
        """Positional encoding of the image embedding, float32 ``[1, D, e, e]``."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.prompt_encoder.get_dense_pe()

    def _encode_prompts(
        self, prompts: Sequence[MaskPrompt], text: Sequence[TextPrompt] | None, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sparse tokens ``[N, T, D]``, their mask ``[N, T]``, dense prompts ``[N, D, e, e]``."""
        encoder = self.model.prompt_encoder
        boxes = torch.cat([prompt.boxes_xyxy for prompt in prompts]) if self.use_box else None
        masks = torch.cat([prompt.mask_logits for prompt in prompts]) if self.use_mask else None
        # Coordinates are encoded in float32 (see _apply).
        with torch.autocast(self.model.device.type, enabled=False):
            if masks is not None:
                masks = masks.to(encoder.no_mask_embed.weight.dtype)
            sparse, dense = encoder(points=None, boxes=boxes, masks=masks)
        sparse, dense = sparse.expand(count, -1, -1), dense.expand(count, -1, -1, -1)
        sparse_mask = torch.ones(sparse.shape[:2], dtype=torch.bool, device=sparse.device)
        if self.use_text:
            assert text is not None, "use_text needs text prompts"
            tokens, token_mask = pad_text(text, [len(prompt.boxes_xyxy) for prompt in prompts])
            sparse = torch.cat([sparse, tokens.to(sparse)], dim=1)
            sparse_mask = torch.cat([sparse_mask, token_mask], dim=1)
        return sparse, sparse_mask, dense

    def _select(self, candidates: Tensor, prompt: MaskPrompt, image_size: tuple[int, int]) -> Tensor:
        """``[K, M, 4e, 4e]`` to ``[K, H, W]``: to original size, then the best of the M."""
        candidates = self.model.postprocess_masks(candidates, self.input_size(image_size), image_size)
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        best = mask_iou(candidates.detach() > 0, prompt.masks[:, None]).argmax(dim=1)
        return candidates[torch.arange(len(best), device=best.device), best]


def pad_text(text: Sequence[TextPrompt], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Text tokens of a batch, one padded row per phrase.

    Args:
        text: Per sample.
        counts: Phrases per sample, K_i.

    Returns:
        Tokens ``[sum K_i, T, D]`` (zeros at padding; order of the tokens kept) and bool mask ``[sum K_i,
        T]``.
    """
    tokens = torch.cat([prompt.tokens for prompt in text])
    device = tokens.device
    offsets = torch.tensor([0, *counts], device=device).cumsum(0)
    owners = torch.cat([prompt.phrase_ids.to(device) + offset for prompt, offset in zip(text, offsets)])
    members = owners == torch.arange(sum(counts), device=device)[:, None]
    lengths = members.sum(1)
    longest = int(lengths.max()) if len(owners) else 0
    position = members.cumsum(1).gather(0, owners[None])[0] - 1
    padded = tokens.new_zeros(sum(counts), longest, tokens.shape[-1])
    padded = padded.index_put((owners, position), tokens)
    return padded, torch.arange(longest, device=device) < lengths[:, None]
