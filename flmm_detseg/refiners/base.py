"""The refiner contract, and what all SAMs share: prompts batched over phrases and images, one encoding an image."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.ops.boxes import masks_to_boxes, scale_boxes
from flmm_detseg.ops.masks import mask_iou, pieces
from flmm_detseg.refiners.prompts import (
    MaskPrompt,
    PointPrompt,
    TextPrompt,
    calls_of,
    coarse_masks,
    pad_text,
    padding_logit,
    text_of,
)
from flmm_detseg.structures import LogitMaps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTIONS = ("eager", "sdpa")


class Refiner(nn.Module, ABC):
    """Coarse mask logits in, mask logits at original image size out, by a model of the SAM kind.

    The model has an image encoder, which is frozen (evaluation mode, no gradient), a prompt encoder and a mask decoder,
    which are trained. Gradients reach the coarse logits through the mask prompt. Heads, models and tools know refiners
    by this contract alone.

    Args:
        model: With ``prompt_encoder`` and ``mask_decoder``.
        use_text: Append the text tokens of a phrase to the sparse prompts.
        use_mask: Give the coarse logits as mask prompt.
        use_box: Give the box of the coarse mask (whole image where it is empty).
        multimask_output: Decode three candidates and take the one that overlaps the coarse mask most; False
            takes the single mask.
        images_per_call: Most images in one call of the image encoder (its attention maps are large).
        dtype: Of the image encoder: ``"float32"``, or ``"bfloat16"`` for half its memory and a fraction of its time,
            also in training. Prompts and decoder, which are trained and stored, stay as they are.
        attention: Of the image encoder: ``"eager"`` (the library's own code) or ``"sdpa"`` (torch's fused kernel, equal
            up to rounding).

    Raises:
        ConfigError: All prompts are switched off, or an unknown ``dtype`` or ``attention``.

    Source: F-LMM, arXiv 2406.05821, section 3.3 (mask refiner).
    """

    # What `dict(type="SAMRefiner", checkpoint=...)` means in a config.
    BUILDERS: ClassVar[tuple[str, ...]] = ("from_pretrained",)

    def __init__(
        self,
        model: nn.Module,
        use_text: bool,
        use_mask: bool,
        use_box: bool,
        multimask_output: bool,
        images_per_call: int,
        dtype: str,
        attention: str,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        for name, value, known in (("dtype", dtype, DTYPES), ("attention", attention, ATTENTIONS)):
            if value not in known:
                raise ConfigError(f"{kind}: `{name}` is {value!r}; choose one of {', '.join(known)}")
        if not (use_text or use_mask or use_box):
            raise ConfigError(f"{kind} needs at least one of use_text, use_mask, use_box")
        self.model: Any = model
        self.use_text = use_text
        self.use_mask = use_mask
        self.use_box = use_box
        self.multimask_output = multimask_output
        self.images_per_call = images_per_call
        self.box_parts: nn.ModuleDict | None = None
        self.image_encoder.requires_grad_(False).eval()
        if dtype != "float32":
            self.image_encoder.to(DTYPES[dtype])
        self._use_attention(attention)

    # What a SAM says of itself.

    @property
    @abstractmethod
    def image_encoder(self) -> nn.Module:
        """The frozen part of the model."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Side of the model's square input, pixels."""

    @property
    @abstractmethod
    def prompt_dim(self) -> int:
        """D, width of a text token."""

    @property
    @abstractmethod
    def positions(self) -> nn.Module:
        """Positional encoding of the prompt encoder."""

    @property
    @abstractmethod
    def exact_buffers(self) -> Sequence[tuple[nn.Module, str]]:
        """Buffers (owner, name) that keep their precision when the model is cast, with the reason beside them."""

    @abstractmethod
    def _use_attention(self, attention: str) -> None:
        """Lets the image encoder attend in one of the ways of :data:`ATTENTIONS`."""

    @abstractmethod
    def preprocess(self, image: np.ndarray) -> Tensor:
        """RGB uint8 ``[H, W, 3]`` to normalised pixels, float32 ``[3, S, S]``, model's device."""

    @abstractmethod
    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H, W)`` of an image inside the square, top left."""

    @abstractmethod
    def mask_prompt(self, logits: Tensor, image_size: tuple[int, int], lowest: float) -> Tensor:
        """Coarse masks as the prompt encoder takes them.

        Args:
            logits: float32 ``[K, h, w]`` covering the image; K may be 0.
            image_size: Original ``(H, W)``.
            lowest: Logit of what lies outside the image, where the square is larger.

        Returns:
            float32 ``[K, 4e, 4e]`` over the square.
        """

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of images: normalised pixels ``[U, 3, S, S]`` to one or more ``[U, D, rows, cols]``."""

    @abstractmethod
    def decoder_features(self, decoder: nn.Module, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What a mask decoder reads of the features of :meth:`encode_pixels`, in the dtype of its weights."""

    @abstractmethod
    def encode_prompts(
        self,
        encoder: nn.Module,
        boxes_xyxy: Tensor | None,
        masks: Tensor | None,
        points: PointPrompt | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Boxes, masks and points as tokens and maps.

        Args:
            encoder: The prompt encoder.
            boxes_xyxy: ``[N, 4]`` in pixels of the square; not changed.
            masks: ``[N, 1, 4e, 4e]``.
            points: P of each prompt, in pixels of the square.

        Returns:
            Sparse tokens ``[N, T, D]`` and dense maps ``[N, D, e, e]``; one row where nothing is given.
        """

    @abstractmethod
    def decode(
        self,
        decoder: nn.Module,
        features: tuple[Tensor, ...],
        sparse: Tensor,
        sparse_mask: Tensor,
        dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decodes N prompts.

        Args:
            decoder: The mask decoder.
            features: Of :meth:`decoder_features`, ``[N, ...]``: each prompt's image.
            sparse: Tokens ``[N, T, D]``.
            sparse_mask: bool ``[N, T]``, False at padding.
            dense: Mask prompts ``[N, D, e, e]``.

        Returns:
            Mask logits ``[N, 4, 4e, 4e]`` (first the single mask, then the candidates) and quality estimates ``[N,
            4]``.
        """

    @abstractmethod
    def choice(self, logits: Tensor, quality: Tensor) -> Tensor:
        """The model's own choice where it is asked for one mask of a prompt.

        Args:
            logits: Of :meth:`decode`, ``[N, 4, 4e, 4e]``.
            quality: Of :meth:`decode`, ``[N, 4]``.

        Returns:
            int64 ``[N]``: which of the four.
        """

    @abstractmethod
    def enlarge(self, candidates: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Maps over the square ``[1, M, 4e, 4e]`` at image size, ``[1, M, H, W]``."""

    @abstractmethod
    def make_maps(self, low_res: Tensor, image_size: tuple[int, int]) -> LogitMaps:
        """Maps over the square ``[K, 4e, 4e]`` with the way to the image's size."""

    # What all SAMs do alike.

    @property
    def trained_candidates(self) -> bool:
        """Whether the three candidates of a prompt and their quality estimates were trained, as in every published SAM;
        a SAM that was trained for its single mask alone (``config.json`` says so) has random ones.
        """
        return bool(getattr(self.model, "trained_candidates", True))

    @property
    def prompted_parts(self) -> tuple[nn.Module, nn.Module]:
        """Prompt encoder and mask decoder for boxes and points: those of :meth:`keep_box_decoder`, where it was called,
        else those that are trained for phrases.
        """
        if self.box_parts is None:
            return self.model.prompt_encoder, self.model.mask_decoder
        return self.box_parts["prompt_encoder"], self.box_parts["mask_decoder"]

    @property
    def unread_by_single_mask(self) -> list[nn.Module]:
        """Parts of the mask decoder that a prompt's single mask does not depend on."""
        decoder = self.model.mask_decoder
        return [decoder.iou_prediction_head, *decoder.output_hypernetworks_mlps[1:]]

    @property
    def map_side(self) -> int:
        """4e, side of mask prompts and of decoded maps."""
        return 4 * self.model.prompt_encoder.image_embedding_size[0]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all but the image encoder, which stays in evaluation mode."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = [getattr(owner, name) for owner, name in self.exact_buffers]
        super()._apply(fn, recurse)
        for (owner, name), old in zip(self.exact_buffers, before, strict=True):
            device = getattr(owner, name).device
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
        gradients = torch.is_grad_enabled()
        # One block a sample from the beginning: small results between the large ones of the calls would keep a
        # process's memory from being returned, and joining them would need it twice.
        found = [
            logits.new_zeros(len(logits), self.map_side, self.map_side, dtype=torch.float32)
            for logits in coarse_logits
        ]
        if sum(counts):
            encoded, image_index = self.image_features(images, image_keys)
            decoder = self.model.mask_decoder
            features = self.decoder_features(decoder, encoded)
            lowest = [padding_logit(logits) for logits in coarse_logits]
            limit = None if gradients else phrases_per_call
            for call in calls_of(counts, limit):
                coarse = [coarse_logits[index][part] for index, part in call]
                prompts = [
                    self.make_prompt(logits, sizes[index], lowest[index])
                    for (index, _), logits in zip(call, coarse)
                ]
                given = text if self.use_text else None
                words = None if given is None else [text_of(given[index], part) for index, part in call]
                lengths = [len(logits) for logits in coarse]
                levels = _per_prompt(features, [image_index[index] for index, _ in call], lengths)
                tokens = self._phrase_tokens(prompts, words, sum(lengths))
                low_res, _ = self.decode(decoder, levels, *tokens)
                low_res = low_res[:, 1:] if self.multimask_output else low_res[:, :1]
                for (index, part), logits, maps in zip(call, coarse, low_res.float().split(lengths)):
                    chosen = self._select(maps, logits, sizes[index])
                    if gradients:
                        found[index] = chosen
                    else:
                        found[index][part] = chosen
        return [self.make_maps(maps, size) for maps, size in zip(found, sizes)]

    def maps_from_tokens(
        self,
        images: Sequence[np.ndarray],
        tokens: Sequence[Tensor],
        image_keys: Sequence[str | None] | None = None,
        *,
        kept: bool = False,
        prompts_per_call: int | None = None,
    ) -> list[LogitMaps]:
        """The single mask of each token that stands for a thing: no mask, box or point, whatever the switches say.

        Gradients reach tokens and mask decoder.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            tokens: Per sample ``[K_i, D]``, each a prompt of its own; K_i may be 0.
            image_keys: As in :meth:`refine`.
            kept: By the parts of :attr:`prompted_parts`, not by those that are trained for phrases.
            prompts_per_call: Most tokens in one call of the decoder; None for all.

        Returns:
            Per sample K_i maps.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        side = self.map_side
        found = [part.new_zeros(0, side, side, dtype=torch.float32) for part in tokens]
        wanted = [index for index, part in enumerate(tokens) if len(part)]
        if wanted:
            keys = None if image_keys is None else [image_keys[index] for index in wanted]
            encoded, rows = self.image_features([images[index] for index in wanted], keys)
            own = (self.model.prompt_encoder, self.model.mask_decoder)
            encoder, decoder = self.prompted_parts if kept else own
            features = self.decoder_features(decoder, encoded)
            with torch.autocast(features[0].device.type, enabled=False):
                sparse, dense = self.encode_prompts(encoder, None, None)
            for call in calls_of([len(tokens[index]) for index in wanted], prompts_per_call):
                given = [tokens[wanted[place]][part] for place, part in call]
                lengths = [len(part) for part in given]
                prompts = torch.cat(given)[:, None].to(sparse.dtype)
                prompts = torch.cat([sparse.expand(len(prompts), -1, -1), prompts], dim=1)
                everything = torch.ones(prompts.shape[:2], dtype=torch.bool, device=prompts.device)
                levels = _per_prompt(features, [rows[place] for place, _ in call], lengths)
                maps, _ = self.decode(
                    decoder, levels, prompts, everything, dense.expand(len(prompts), -1, -1, -1)
                )
                for (place, _), part in zip(call, maps[:, 0].float().split(lengths), strict=True):
                    found[wanted[place]] = torch.cat([found[wanted[place]], part])
        return [replace(self.make_maps(maps, size), channels=1) for maps, size in zip(found, sizes)]

    def keep_box_decoder(self) -> None:
        """Keeps prompt encoder and mask decoder as they are now, frozen, for :meth:`masks_from_boxes`.

        Training for phrases teaches the decoder to expect text and mask prompts; of boxes alone it then makes
        little (tiny SAM on TinyWorld: mean IoU 0.10 instead of 0.84). Call it before training or loading.
        """
        kept = {"prompt_encoder": self.model.prompt_encoder, "mask_decoder": self.model.mask_decoder}
        # Positions are shared: they are never trained, and see `_apply`.
        copied = copy.deepcopy(kept, {id(self.positions): self.positions})
        self.box_parts = nn.ModuleDict(copied).requires_grad_(False)

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
        """The model's own masks of boxes: no mask and no text prompt, whatever the switches say.

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
        found = [
            boxes.new_zeros(0, self.map_side, self.map_side, dtype=torch.float32) for boxes in boxes_xyxy
        ]
        if wanted:
            keys = None if image_keys is None else [image_keys[index] for index in wanted]
            encoded, rows = self.image_features([images[index] for index in wanted], keys)
            prompt_encoder, mask_decoder = self.prompted_parts
            features = self.decoder_features(mask_decoder, encoded)
            for index, row in zip(wanted, rows):
                boxes = scale_boxes(boxes_xyxy[index].float(), sizes[index], self.input_size(sizes[index]))
                parts = []
                for part in boxes.split(boxes_per_call):
                    with torch.autocast(part.device.type, enabled=False):
                        sparse, dense = self.encode_prompts(prompt_encoder, part, None)
                    everything = torch.ones(sparse.shape[:2], dtype=torch.bool, device=sparse.device)
                    levels = _per_prompt(features, [row], [len(part)])
                    logits, quality = self.decode(mask_decoder, levels, sparse, everything, dense)
                    parts.append(_chosen(logits, self.choice(logits, quality)).float())
                found[index] = torch.cat(parts)
        return [replace(self.make_maps(maps, size), channels=1) for maps, size in zip(found, sizes)]

    @torch.no_grad()
    def map_of_prompt(
        self,
        features: tuple[Tensor, ...],
        image_size: tuple[int, int],
        points_xy: Tensor | None = None,
        labels: Tensor | None = None,
        box_xyxy: Tensor | None = None,
        *,
        candidates: bool = False,
    ) -> tuple[LogitMaps, float]:
        """The model's own mask of what points and a box say together, by the parts of :attr:`prompted_parts`.

        Args:
            features: Of one image, from :meth:`image_features`.
            image_size: Original ``(H, W)``.
            points_xy: ``[P, 2]`` in original pixels; None with a box alone.
            labels: int64 ``[P]``: 1 lies in what is meant, 0 does not.
            box_xyxy: ``[4]`` in original pixels.
            candidates: Take the best of the three candidates by the model's own estimate, as SAM does with one click;
                False takes its choice where it is asked for one mask.

        Returns:
            One map, and the model's estimate of its mask's IoU with what is meant.
        """
        encoder, decoder = self.prompted_parts
        size = self.input_size(image_size)
        device = features[0].device
        points = box = None
        if points_xy is not None:
            assert labels is not None, "points need labels"
            scale = torch.tensor([size[1] / image_size[1], size[0] / image_size[0]], device=device)
            points = PointPrompt((points_xy.to(device).float() * scale)[None], labels.to(device)[None])
        if box_xyxy is not None:
            box = scale_boxes(box_xyxy.to(device).float()[None], image_size, size)
        with torch.autocast(device.type, enabled=False):
            sparse, dense = self.encode_prompts(encoder, box, None, points)
        everything = torch.ones(sparse.shape[:2], dtype=torch.bool, device=device)
        levels = self.decoder_features(decoder, features)
        logits, quality = self.decode(decoder, levels, sparse, everything, dense)
        best = 1 + quality[:, 1:].argmax(1) if candidates else self.choice(logits, quality)
        maps = self.make_maps(_chosen(logits, best).float(), image_size)
        return replace(maps, channels=3 if candidates else 1), float(quality[0, best[0]])

    @torch.no_grad()
    def image_features(
        self, images: Sequence[np.ndarray], image_keys: Sequence[str | None] | None = None
    ) -> tuple[tuple[Tensor, ...], list[int]]:
        """Features of images, each different image once.

        Args:
            images: Per sample RGB uint8 ``[H, W, 3]``.
            image_keys: As in :meth:`refine`.

        Returns:
            What :meth:`encode_pixels` gives for the U different ones and, per sample, the row that belongs to it.

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
        parts = [self.encode_pixels(part) for part in pixels.split(self.images_per_call)]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True)), index

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
        logits = coarse_logits.float()
        lowest = padding_logit(logits) if lowest is None else lowest
        mask_logits = self.mask_prompt(logits, image_size, lowest)
        boxes = [
            masks_to_boxes(coarse_masks(logits[part], image_size)) for part in pieces(logits, image_size)
        ]
        boxes_xyxy = torch.cat(boxes) if boxes else logits.new_zeros(0, 4)
        whole = boxes_xyxy.new_tensor([0, 0, image_size[1], image_size[0]])
        boxes_xyxy = torch.where(boxes_xyxy[:, 2:3] > 0, boxes_xyxy, whole)
        input_size = self.input_size(image_size)
        return MaskPrompt(mask_logits[:, None], scale_boxes(boxes_xyxy, image_size, input_size))

    def _phrase_tokens(
        self, prompts: Sequence[MaskPrompt], text: Sequence[TextPrompt] | None, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sparse tokens ``[N, T, D]``, their mask ``[N, T]``, dense prompts ``[N, D, e, e]``."""
        encoder = self.model.prompt_encoder
        boxes = torch.cat([prompt.boxes_xyxy for prompt in prompts]) if self.use_box else None
        masks = torch.cat([prompt.mask_logits for prompt in prompts]) if self.use_mask else None
        weight = encoder.no_mask_embed.weight
        # Coordinates are encoded in float32 (see `exact_buffers`).
        with torch.autocast(weight.device.type, enabled=False):
            if masks is not None:
                masks = masks.to(weight.dtype)
            sparse, dense = self.encode_prompts(encoder, boxes, masks)
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
                maps = self.enlarge(candidates[index : index + 1], image_size)
                coarse = coarse_masks(coarse_logits[index : index + 1].float(), image_size)
                best.append(mask_iou(maps[0] > 0, coarse).argmax())
        return candidates[torch.arange(len(best), device=candidates.device), torch.stack(best)]


def _chosen(logits: Tensor, index: Tensor) -> Tensor:
    """``[N, M, h, w]`` to ``[N, h, w]``: of each row the one that ``[N]`` names."""
    return logits[torch.arange(len(logits), device=logits.device), index]


def _per_prompt(
    features: tuple[Tensor, ...], rows: Sequence[int], counts: Sequence[int]
) -> tuple[Tensor, ...]:
    """Features ``[U, ...]`` of images for the prompts of each row, ``[sum of counts, ...]``; of one image no copies."""
    if len(set(rows)) == 1:
        return tuple(level[rows[0]].expand(sum(counts), -1, -1, -1) for level in features)
    index = torch.tensor(rows, device=features[0].device)
    index = index.repeat_interleave(torch.tensor(counts, device=index.device))
    return tuple(level[index] for level in features)
