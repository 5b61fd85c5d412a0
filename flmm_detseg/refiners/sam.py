"""Refines coarse masks with segment-anything: mask, box and text prompts, batched over phrases and images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torchvision.transforms.functional import resize, to_pil_image

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.ops.boxes import masks_to_boxes, scale_boxes
from flmm_detseg.ops.letterbox import round_longest_side
from flmm_detseg.ops.masks import above, mask_iou, pieces, resize_maps
from flmm_detseg.refiners.sam_attention import use_sdpa
from flmm_detseg.refiners.sam_build import SamSizes, build_sam
from flmm_detseg.refiners.sam_decoder import decode_masks
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import LogitMaps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTIONS = ("eager", "sdpa")


class TextPrompt(NamedTuple):
    """Text tokens of the phrases of one sample, already in the prompt space.

    Attributes:
        tokens: ``[P, D]``.
        phrase_ids: int64 ``[P]``, phrase of each token.
    """

    tokens: Tensor
    phrase_ids: Tensor


class MaskPrompt(NamedTuple):
    """SAM's prompts from the coarse masks of one image.

    Attributes:
        mask_logits: float32 ``[K, 1, 4e, 4e]`` over SAM's padded square.
        boxes_xyxy: float32 ``[K, 4]`` in pixels of that square, no gradient.
    """

    mask_logits: Tensor
    boxes_xyxy: Tensor


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
        dtype: Of the image encoder, which is frozen: ``"float32"``, or ``"bfloat16"`` for half its memory and a
            fraction of its time, also in training. Prompts and decoder, which are trained and stored, stay as they
            are. What it changes: ``docs/benchmarks.md``.
        attention: Of the image encoder: ``"eager"`` (segment-anything's own code) or ``"sdpa"`` (torch's fused kernel,
            equal up to rounding).

    Raises:
        ConfigError: All prompts are switched off, or an unknown ``dtype`` or ``attention``.

    Source: F-LMM, arXiv 2406.05821, section 3.3 (mask refiner); SAM, arXiv 2304.02643.
    """

    # What `dict(type="SAMRefiner", checkpoint=...)` means in a config.
    BUILDERS: ClassVar[tuple[str, ...]] = ("from_pretrained",)

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
        super().__init__()
        for name, value, known in (("dtype", dtype, DTYPES), ("attention", attention, ATTENTIONS)):
            if value not in known:
                raise ConfigError(f"SAMRefiner: `{name}` is {value!r}; choose one of {', '.join(known)}")
        if not (use_text or use_mask or use_box):
            raise ConfigError("SAMRefiner needs at least one of use_text, use_mask, use_box")
        self.model = model
        self.use_text = use_text
        self.use_mask = use_mask
        self.use_box = use_box
        self.multimask_output = multimask_output
        self.images_per_call = images_per_call
        self.box_parts: nn.ModuleDict | None = None
        model.image_encoder.requires_grad_(False).eval()
        if dtype != "float32":
            model.image_encoder.to(DTYPES[dtype])
        if attention == "sdpa":
            use_sdpa(model.image_encoder)

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
    def side(self) -> int:
        """Side of SAM's padded square, pixels."""
        return self.model.image_encoder.img_size

    @property
    def prompt_dim(self) -> int:
        """D, width of a text token."""
        return self.model.prompt_encoder.embed_dim

    def train(self, mode: bool = True) -> SAMRefiner:
        """Sets the mode of all but the image encoder, which stays in evaluation mode."""
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
        """Refines the masks of a batch; arguments as in :meth:`refine`.

        Args:
            images: uint8 RGB ``[H, W, 3]``, one a sample.
            coarse_logits: Per sample ``[K, h, w]``.
            text: Text prompts, one a sample.
            image_keys: Samples with the same key share an encoding.

        Returns:
            Per sample float32 logits ``[K_i, H_i, W_i]``.
        """
        return [maps.enlarge() for maps in self.refine(images, coarse_logits, text, image_keys)]

    def refine(
        self,
        images: Sequence[np.ndarray],
        coarse_logits: Sequence[Tensor],
        text: Sequence[TextPrompt] | None = None,
        image_keys: Sequence[str | None] | None = None,
        phrases_per_call: int | None = None,
    ) -> list[LogitMaps]:
        """Refined masks at the decoder's own size: full size takes too much memory for many phrases or a large image.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            coarse_logits: Per sample ``[K_i, h_i, w_i]`` covering the image (un-padded); K_i may be 0.
            text: Per sample; needed with ``use_text``, ignored without.
            image_keys: Per sample; samples with equal non-None keys show the same image, encoded once.
            phrases_per_call: Most phrases in one call of prompt encoder and decoder; None for all. With autograd all
                go at once. Equal up to rounding: matrix kernels depend on the number of rows.

        Returns:
            Per sample K_i maps.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        counts = [len(logits) for logits in coarse_logits]
        side = 4 * self.model.prompt_encoder.image_embedding_size[0]
        gradients = torch.is_grad_enabled()
        # One block a sample from the beginning: small results between the large ones of the calls would keep a
        # process's memory from being returned, and joining them would need it twice.
        found = [logits.new_zeros(len(logits), side, side, dtype=torch.float32) for logits in coarse_logits]
        if sum(counts):
            embeddings, image_index = self.encode_images(images, image_keys)
            decoder = self.model.mask_decoder
            dtype = decoder.mask_tokens.weight.dtype
            embeddings, dense_pe = embeddings.to(dtype), self.dense_pe().to(dtype)
            lowest = [_padding_logit(logits) for logits in coarse_logits]
            limit = None if gradients else phrases_per_call
            for call in _calls(counts, limit):
                coarse = [coarse_logits[index][part] for index, part in call]
                prompts = [
                    self.make_prompt(logits, sizes[index], lowest[index])
                    for (index, _), logits in zip(call, coarse)
                ]
                given = text if self.use_text else None
                words = None if given is None else [_text_of(given[index], part) for index, part in call]
                lengths = [len(logits) for logits in coarse]
                rows = torch.tensor([image_index[index] for index, _ in call], device=embeddings.device)
                sparse, sparse_mask, dense = self._encode_prompts(prompts, words, sum(lengths))
                low_res, _ = decode_masks(
                    decoder,
                    embeddings[rows.repeat_interleave(torch.tensor(lengths, device=rows.device))],
                    dense_pe,
                    sparse.to(dtype),
                    sparse_mask,
                    dense.to(dtype),
                )
                low_res = low_res[:, 1:] if self.multimask_output else low_res[:, :1]
                for (index, part), logits, maps in zip(call, coarse, low_res.float().split(lengths)):
                    chosen = self._select(maps, logits, sizes[index])
                    if gradients:
                        found[index] = chosen
                    else:
                        found[index][part] = chosen
        return [self._maps(maps, size) for maps, size in zip(found, sizes)]

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
        """Masks of boxes at image size, see :meth:`maps_from_boxes`.

        Args:
            images: uint8 RGB ``[H, W, 3]``, one a sample.
            boxes_xyxy: Per sample ``[K, 4]``, pixels of the original image.
            image_keys: Samples with the same key share an encoding.

        Returns:
            Per sample float32 logits ``[N_i, H_i, W_i]``, no gradient.
        """
        return [maps.enlarge() for maps in self.maps_from_boxes(images, boxes_xyxy, image_keys)]

    @torch.no_grad()
    def maps_from_boxes(
        self,
        images: Sequence[np.ndarray],
        boxes_xyxy: Sequence[Tensor],
        image_keys: Sequence[str | None] | None = None,
        boxes_per_call: int = 32,
    ) -> list[LogitMaps]:
        """SAM's own masks of boxes: no mask and no text prompt, whatever the switches say.

        By the parts of :meth:`keep_box_decoder`, where it was called, else by those that are trained for phrases.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            boxes_xyxy: Per sample float ``[N_i, 4]`` in original pixels; N_i may be 0.
            image_keys: As in :meth:`refine`.
            boxes_per_call: Most boxes in one call of prompt encoder and decoder.

        Returns:
            Per sample N_i maps.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        wanted = [index for index, boxes in enumerate(boxes_xyxy) if len(boxes)]
        side = 4 * self.model.prompt_encoder.image_embedding_size[0]
        found = [boxes.new_zeros(0, side, side, dtype=torch.float32) for boxes in boxes_xyxy]
        if wanted:
            keys = None if image_keys is None else [image_keys[index] for index in wanted]
            embeddings, rows = self.encode_images([images[index] for index in wanted], keys)
            for index, row in zip(wanted, rows):
                boxes = scale_boxes(boxes_xyxy[index].float(), sizes[index], self.input_size(sizes[index]))
                parts = [self._decode_boxes(part, embeddings[row]) for part in boxes.split(boxes_per_call)]
                found[index] = torch.cat(parts)
        return [replace(self._maps(maps, size), channels=1) for maps, size in zip(found, sizes)]

    def _decode_boxes(self, boxes: Tensor, embedding: Tensor) -> Tensor:
        """``[n, 4]`` in SAM's square to float32 ``[n, 4e, 4e]``."""
        prompt_encoder, mask_decoder = self.model.prompt_encoder, self.model.mask_decoder
        if self.box_parts is not None:
            prompt_encoder, mask_decoder = self.box_parts["prompt_encoder"], self.box_parts["mask_decoder"]
        dtype = mask_decoder.mask_tokens.weight.dtype
        with torch.autocast(self.model.device.type, enabled=False):
            sparse, dense = prompt_encoder(points=None, boxes=boxes, masks=None)
        low_res, _ = decode_masks(
            mask_decoder,
            embedding.to(dtype).expand(len(boxes), -1, -1, -1),
            self.dense_pe().to(dtype),
            sparse.to(dtype),
            torch.ones(sparse.shape[:2], dtype=torch.bool, device=sparse.device),
            dense.to(dtype),
        )
        return low_res[:, 0].float()

    @torch.no_grad()
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
        size = self.input_size((image.shape[0], image.shape[1]))
        resized = torch.from_numpy(np.array(resize(to_pil_image(image), size))).to(self.model.device)
        return self.model.preprocess(resized.permute(2, 0, 1).float())

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image inside SAM's square: rounded, at least 1 pixel."""
        return round_longest_side(image_size, self.side)

    def make_prompt(
        self, coarse_logits: Tensor, image_size: tuple[int, int], lowest: float | None = None
    ) -> MaskPrompt:
        """Prompts from the coarse masks of one image, on their device.

        Args:
            coarse_logits: ``[K, h, w]`` covering the image; K may be 0.
            image_size: Original ``(H, W)``.
            lowest: Logit of the padding; None takes that of these masks. Who gives some of an image's masks gives the
                value of all.

        Returns:
            The mask prompts (gradients flow back to the logits) and boxes.
        """
        input_size = self.input_size(image_size)
        logits = coarse_logits.float()
        padding = (0, self.side - input_size[1], 0, self.side - input_size[0])
        lowest = _padding_logit(logits) if lowest is None else lowest
        square = F.pad(resize_maps(logits, input_size), padding, value=lowest)
        mask_logits = resize_maps(square, self.model.prompt_encoder.mask_input_size)

        boxes = [
            masks_to_boxes(coarse_masks(logits[part], image_size)) for part in pieces(logits, image_size)
        ]
        boxes_xyxy = torch.cat(boxes) if boxes else logits.new_zeros(0, 4)
        whole = boxes_xyxy.new_tensor([0, 0, image_size[1], image_size[0]])
        boxes_xyxy = torch.where(boxes_xyxy[:, 2:3] > 0, boxes_xyxy, whole)
        return MaskPrompt(mask_logits[:, None], scale_boxes(boxes_xyxy, image_size, input_size))

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

    def _select(self, candidates: Tensor, coarse_logits: Tensor, image_size: tuple[int, int]) -> Tensor:
        """``[K, M, 4e, 4e]`` to ``[K, 4e, 4e]``: of the M the one that overlaps the coarse mask most at image size."""
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        best = []
        with torch.no_grad():
            for index in range(len(candidates)):
                maps = self.model.postprocess_masks(
                    candidates[index : index + 1], self.input_size(image_size), image_size
                )
                coarse = coarse_masks(coarse_logits[index : index + 1].float(), image_size)
                best.append(mask_iou(maps[0] > 0, coarse).argmax())
        return candidates[torch.arange(len(best), device=candidates.device), torch.stack(best)]

    def _maps(self, low_res: Tensor, image_size: tuple[int, int]) -> LogitMaps:
        channels = 3 if self.multimask_output else 1
        return LogitMaps(low_res, image_size, self.side, self.input_size(image_size), channels)


def coarse_masks(logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks at image size, bool ``[K, H, W]``: probabilities are enlarged, then cut at a half.

    Args:
        logits: float32 ``[K, h, w]`` covering the image.
        image_size: ``(H, W)``.

    Returns:
        True where the enlarged probability is above a half.
    """
    return above(resize_maps(logits.detach().sigmoid(), image_size), 0.5)


def _padding_logit(logits: Tensor) -> float:
    """Not above any mask of the image, and clearly background: the padding never looks like an object."""
    return min(-1.0, float(logits.detach().float().min())) if logits.numel() else -1.0


def _calls(counts: Sequence[int], limit: int | None) -> list[list[tuple[int, slice]]]:
    """Cuts the phrases of a batch into calls.

    Args:
        counts: Phrases per sample.
        limit: Most phrases in a call; None for one call.

    Returns:
        Per call the samples and which of their phrases; samples without phrases are in none.
    """
    places = [(index, phrase) for index, count in enumerate(counts) for phrase in range(count)]
    size = limit or len(places)
    calls = []
    for start in range(0, len(places), size):
        chosen: dict[int, list[int]] = {}
        for index, phrase in places[start : start + size]:
            chosen.setdefault(index, []).append(phrase)
        calls.append([(index, slice(found[0], found[-1] + 1)) for index, found in chosen.items()])
    return calls


def _text_of(prompt: TextPrompt, part: slice) -> TextPrompt:
    """The text of some phrases, counted from 0."""
    inside = (prompt.phrase_ids >= part.start) & (prompt.phrase_ids < part.stop)
    return TextPrompt(prompt.tokens[inside], prompt.phrase_ids[inside] - part.start)


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
