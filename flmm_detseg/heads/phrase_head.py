"""Phrase grounding: attention rows of a phrase become its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
from flmm_detseg.heads.base import Encode, Head
from flmm_detseg.heads.frame import Frame
from flmm_detseg.heads.losses import MaskLoss
from flmm_detseg.heads.mask_prediction import mask_prediction
from flmm_detseg.heads.presence_head import PresenceEvidence, PresenceHead
from flmm_detseg.heads.unet_graph import text_graph, unet_graph
from flmm_detseg.heads.unet_head import UNetHead
from flmm_detseg.ops.masks import resize_masks
from flmm_detseg.refiners import Refiner, TextPrompt
from flmm_detseg.refiners.decoder_graph import decoder_graphs
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import (
    CaptureSpec,
    Graph,
    GroundingBatch,
    HiddenRows,
    LMMInputs,
    LMMStates,
    LogitMaps,
    PatchGrid,
    Prediction,
    Sample,
)
from flmm_detseg.utils.memory import give_back_memory

TARGET_RESOLUTIONS = ("processor", "full")


class PhraseReading(NamedTuple):
    """The phrases of one sample before the refiner.

    Attributes:
        coarse_logits: float32 ``[K, h, w]`` over the image.
        text: Text prompts of the phrases, where the refiner takes them.
        attention: The attention stack, where it was to be kept.
        presence: float32 ``[K]``, probabilities, where there is a presence head.
    """

    coarse_logits: Tensor
    text: TextPrompt | None = None
    attention: Tensor | None = None
    presence: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[PhraseReading], coarse_logits: Tensor) -> PhraseReading:
        """Phrases of one sample that were read in parts; ``coarse_logits`` of all of them lie in one block already."""
        text = attention = None
        if prompts := [part.text for part in parts if part.text is not None]:
            counts = [0, *(len(part.coarse_logits) for part in parts)]
            offsets = torch.tensor(counts).cumsum(0).tolist()
            ids = [prompt.phrase_ids + offset for prompt, offset in zip(prompts, offsets)]
            text = TextPrompt(torch.cat([prompt.tokens for prompt in prompts]), torch.cat(ids))
        if stacks := [part.attention for part in parts if part.attention is not None]:
            attention = torch.cat(stacks)
        found = [part.presence for part in parts if part.presence is not None]
        return cls(coarse_logits, text, attention, torch.cat(found) if found else None)


@MODELS.register_module()
class PhraseGroundingHead(Head[Prediction]):
    """F-LMM's head: U-Net on the attention stack, then SAM with mask, box and text prompts.

    Trainable names are those of published F-LMM checkpoints (``mask_head.*``, ``sam.model.*``,
    ``text_proj.*``, ``text_layer_weights``). The two text parameters exist only where a refiner uses text.

    Args:
        mask_head: Coarse masks from attention stacks: a U-Net, or :class:`AttentionMaskHead`. With the latter nothing
            of this head is trained: the refiner, which then takes no text, stays as it was published.
        sam: Refiner; None keeps the coarse masks.
        num_layers: L of the LMM.
        hidden_size: d of the LMM.
        text_dim: Width of SAM's prompts.
        target_resolution: ``"processor"`` (F-LMM: targets at the size the LMM's processor gives the image,
            both losses) or ``"full"`` (targets from the original image).
        loss_mask_weight: Factor of the cross-entropy of both masks.
        loss_dice_weight: Factor of the dice loss of both masks.
        keep_attention: Return the attention stack with each prediction.
        phrases_per_call: Most phrases in one call of the U-Net, of SAM's prompts and of its decoder when masks are
            predicted: memory and time of a phrase then do not grow with their number. In training a batch is one
            call. Equal masks up to rounding (kernels depend on the number of rows).
        phrases_per_pass: Most phrases of a sample whose attention rows are kept at a time; one with more is read by
            the LMM again for every so many (of a generated answer, whose rows are kept, only merged again).
        presence: Says whether there is what a phrase names: :attr:`Prediction.presence`. It learns from phrases whose
            target masks are empty, and those whose are not. Where all else of the head is frozen (``model.freeze``), it
            is all that the loss is about.

    Raises:
        ConfigError: ``text_dim`` is not the refiner's, the resolution is unknown, a number is below 1, the refiner
            wants text of a head that is not trained.

    Source: F-LMM, arXiv 2406.05821, section 3.
    """

    tasks = frozenset({"phrase"})
    result_of = frozenset({"phrase"})

    def __init__(
        self,
        mask_head: UNetHead | AttentionMaskHead,
        sam: Refiner | None,
        num_layers: int,
        hidden_size: int,
        text_dim: int = 256,
        target_resolution: str = "processor",
        loss_mask_weight: float = 1.0,
        loss_dice_weight: float = 1.0,
        keep_attention: bool = False,
        phrases_per_call: int = 32,
        phrases_per_pass: int = 48,
        presence: PresenceHead | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("phrases_per_call", phrases_per_call), ("phrases_per_pass", phrases_per_pass)):
            if value < 1:
                raise ConfigError(f"PhraseGroundingHead: `{name}` is {value}; at least 1 is needed")
        self.phrases_per_call = phrases_per_call
        self.phrases_per_pass = phrases_per_pass
        if target_resolution not in TARGET_RESOLUTIONS:
            raise ConfigError(
                f"target_resolution {target_resolution!r} is none of {', '.join(TARGET_RESOLUTIONS)}"
            )
        self.mask_head = mask_head
        self.sam = sam
        self.target_resolution = target_resolution
        self.keep_attention = keep_attention
        self.mask_loss = MaskLoss(loss_mask_weight, loss_dice_weight)
        self.trained = not isinstance(mask_head, AttentionMaskHead)
        if not self.trained:
            if sam is not None and sam.use_text:
                raise ConfigError(
                    "AttentionMaskHead is not trained, so nothing makes text prompts for the refiner: set "
                    "`sam.use_text`=False"
                )
            self.requires_grad_(False)
        if sam is not None and sam.use_text:
            if text_dim != sam.prompt_dim:
                raise ConfigError(
                    f"text_dim={text_dim}, but the SAM model's prompts have {sam.prompt_dim} channels"
                )
            self.text_layer_weights = nn.Parameter(torch.ones(num_layers))
            self.text_proj = nn.Linear(hidden_size, text_dim)
        self.presence = presence

    @property
    def uses_text(self) -> bool:
        """Whether the refiner is prompted with the phrase's hidden states."""
        return self.sam is not None and self.sam.use_text

    @property
    def lent_sam(self) -> Refiner | None:
        """The refiner."""
        return self.sam

    @property
    def capture(self) -> CaptureSpec:
        """Attention rows, hidden rows where the refiner takes text, and what the presence head reads."""
        own = CaptureSpec(attention=True, hidden="all" if self.uses_text else ())
        if self.presence is None:
            return own
        layers = self.presence.hidden_layers
        read = CaptureSpec(
            hidden=layers,
            vision_layers=self.presence.vision_layers,
            likelihood=self.presence.reads_likelihood,
        )
        return own.union(read)

    @property
    def presence_score(self) -> PresenceHead | None:
        """See :class:`Head`: of each phrase."""
        return self.presence

    @property
    def text_layer_shares(self) -> Tensor | None:
        """See :class:`Head`: of the text prompt."""
        return self.text_layer_weights.detach().float().softmax(0) if self.uses_text else None

    def graphs(self) -> list[Graph]:
        """See :class:`Head`: the mask head (where it is trained), the text prompt and the refiner's decoder."""
        found = [unet_graph(self.mask_head)] if isinstance(self.mask_head, UNetHead) else []
        if self.uses_text:
            found.append(text_graph(self.text_layer_weights, self.text_proj))
        return found if self.sam is None else [*found, *decoder_graphs(self.sam)]

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        """Losses on coarse and refined masks, and on presence.

        Args:
            states: What :attr:`capture` asks for.
            batch: Samples with one mask a phrase; an empty one where the image shows nothing of the kind.

        Returns:
            ``loss_mask``, ``loss_dice``, ``accuracy``, ``aiou``, and the same with prefix ``sam_`` for
            refined masks, where masks are trained; with a presence head ``loss_presence`` (binary cross-entropy of its
            logits before calibration) and ``presence_accuracy``.

        Raises:
            DataError: A sample has no masks, or not one per phrase.
        """
        assert states.attention is not None  # `capture` asks for it
        masks_learn = self.presence is None or any(
            parameter.requires_grad
            for name, parameter in self.named_parameters()
            if not name.startswith("presence.")
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and masks_learn):
            coarse = self.coarse_logits(states.attention, batch)
        result: dict[str, Tensor] = {}
        if self.presence is not None:
            result.update(self._presence_loss(states, coarse, batch))
        if not masks_learn:
            return result
        result.update(self.mask_loss(coarse, self._targets(batch, coarse)))
        if self.sam is not None:
            images = [sample.image for sample in batch.samples]
            keys = [sample.image_id for sample in batch.samples]
            refined = self.sam(images, coarse, self._prompts(states), keys)
            figures = self.mask_loss(refined, self._targets(batch, refined))
            result.update({f"sam_{name}": value for name, value in figures.items()})
        return result

    @torch.no_grad()
    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[Prediction]:
        """Masks, boxes and scores at original image size."""
        return self.finish(self.read(states, batch, keep_attention=self.keep_attention), batch.samples)

    @torch.no_grad()
    def run(self, encode: Encode, batch: GroundingBatch, *, keep_attention: bool = False) -> list[Prediction]:
        """See :class:`Head`; a sample with more than ``phrases_per_pass`` phrases is read in several passes.

        All passes come before the refiner, whose padding is the lowest logit of all phrases of an image.
        """
        keep_attention = keep_attention or self.keep_attention
        readings: dict[int, PhraseReading] = {}
        counts = [len(sample.phrases) for sample in batch.samples]
        few = [i for i, count in enumerate(counts) if count <= self.phrases_per_pass]
        if few:
            part = batch.part(few)
            found = self.read(encode(part), part, keep_attention=keep_attention)
            readings.update(zip(few, found, strict=True))
        for index in set(range(len(batch))) - set(few):
            readings[index] = self._read_in_parts(
                encode, batch.samples[index], batch.inputs[index], keep_attention
            )
        return self.finish([readings[i] for i in range(len(batch))], batch.samples)

    def _read_in_parts(
        self, encode: Encode, sample: Sample, inputs: LMMInputs, keep_attention: bool
    ) -> PhraseReading:
        count, step = len(sample.phrases), self.phrases_per_pass
        coarse: Tensor | None = None
        parts = []
        for start in range(0, count, step):
            phrases = slice(start, start + step)
            batch = GroundingBatch(
                [replace(sample, phrases=sample.phrases[phrases], masks=None)],
                [replace(inputs, phrase_tokens=inputs.phrase_tokens[phrases])],
            )
            states = encode(batch)
            give_back_memory()
            (part,) = self.read(states, batch, keep_attention=keep_attention)
            del states
            if coarse is None:
                coarse = part.coarse_logits.new_empty(count, *part.coarse_logits.shape[1:])
            coarse[phrases] = part.coarse_logits
            parts.append(part._replace(coarse_logits=coarse[phrases]))
            give_back_memory()
        assert coarse is not None  # a sample without phrases is not read in parts
        return PhraseReading.join(parts, coarse)

    @torch.no_grad()
    def read(
        self, states: LMMStates, batch: GroundingBatch, *, keep_attention: bool = False
    ) -> list[PhraseReading]:
        """First half of :meth:`predict`: what is left of the LMM's states once the U-Net has seen them.

        Args:
            states: Of the batch.
            batch: Gives the geometry.
            keep_attention: Keep the attention stacks too.

        Returns:
            Per sample what is left of its phrases.
        """
        assert states.attention is not None  # `capture` asks for it
        nothing = [None] * len(batch)
        coarse = self.coarse_logits(states.attention, batch)
        found = self.presence_logits(states, batch, coarse)
        rows = zip(
            coarse,
            self._prompts(states) or nothing,
            states.attention if keep_attention else nothing,
            nothing if self.presence is None else map(self.presence.probability, found),
            strict=True,
        )
        return [PhraseReading(*values) for values in rows]

    @torch.no_grad()
    def finish(self, readings: Sequence[PhraseReading], samples: Sequence[Sample]) -> list[Prediction]:
        """Second half of :meth:`predict`: refined masks, boxes and scores; one reading a sample, of all its phrases.

        Args:
            readings: Of the first half, one a sample.
            samples: The samples, in the same order.

        Returns:
            One prediction per sample: masks at the image's original size, boxes xyxy in its pixels.

        Raises:
            RunError: Masks, boxes or scores hold NaN or infinities; names the sample.
        """
        refined: Sequence[LogitMaps | None] = [None] * len(samples)
        if self.sam is not None:
            refined = self.sam.refine(
                [sample.image for sample in samples],
                [reading.coarse_logits for reading in readings],
                [reading.text for reading in readings if reading.text is not None]
                if self.uses_text
                else None,
                [sample.image_id for sample in samples],
                phrases_per_call=self.phrases_per_call,
            )
        return [
            mask_prediction(sample, reading.coarse_logits, maps, reading.attention, reading.presence)
            for sample, reading, maps in zip(samples, readings, refined, strict=True)
        ]

    def coarse_logits(self, stacks: Sequence[Tensor], batch: GroundingBatch) -> list[Tensor]:
        """Coarse mask logits with the processor's padding cut off.

        Args:
            stacks: Per sample ``[K_i, C, rows, cols]`` (``LMMStates.attention``).
            batch: Gives the geometry.

        Returns:
            Per sample float32 ``[K_i, h_i, w_i]`` covering the image.
        """
        if (
            not self.trained
        ):  # a mean over maps is better without the cells of the padding, which see no image
            return self.mask_head.forward_grouped(
                [_crop(stack, inputs.grid) for stack, inputs in zip(stacks, batch.inputs)]
            )
        if sum(map(len, stacks)) <= self.phrases_per_call:
            logits = self.mask_head.forward_grouped(stacks)
        else:
            logits = self.mask_head.forward_grouped(stacks, self.phrases_per_call)
        return [_crop(maps, inputs.grid) for maps, inputs in zip(logits, batch.inputs)]

    def presence_logits(
        self, states: LMMStates, batch: GroundingBatch, coarse: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """What the presence head says of each phrase, before calibration.

        Args:
            states: What :attr:`capture` asks for.
            batch: Gives the geometry.
            coarse: Of :meth:`coarse_logits`; None: made here.

        Returns:
            Per sample float32 ``[K_i]``; none without a presence head.
        """
        if self.presence is None:
            return []
        assert states.attention is not None  # `capture` asks for all of them
        assert states.hidden is not None
        assert states.vision is not None
        if coarse is None:
            with torch.no_grad():
                coarse = self.coarse_logits(states.attention, batch)
        nothing: list[Tensor | None] = [None] * len(batch)
        likelihood = states.likelihood or nothing
        evidence = []
        for rows, stack, maps, logits, likely, inputs in zip(
            states.hidden, states.attention, states.vision, coarse, likelihood, batch.inputs, strict=True
        ):
            vision = torch.cat([maps[layer] for layer in self.presence.vision_layers])
            evidence.append(
                PresenceEvidence(
                    hidden=replace(rows, states=rows.states.detach()),
                    vision=Frame.of(inputs.grid, 1).crop(vision.detach()),
                    mask_logits=logits.detach(),
                    attention=_crop(stack.detach(), inputs.grid),
                    likelihood=likely,
                )
            )
        return self.presence(evidence)

    def is_there(self, sample: Sample) -> Tensor:
        """Whether the image shows what each phrase names: its target mask has a pixel.

        Args:
            sample: With masks.

        Returns:
            bool ``[K]``.

        Raises:
            DataError: It has no masks, or not one per phrase.
        """
        return torch.from_numpy(_target_masks(sample)).flatten(1).any(1)

    def _presence_loss(
        self, states: LMMStates, coarse: Sequence[Tensor], batch: GroundingBatch
    ) -> dict[str, Tensor]:
        logits = torch.cat(self.presence_logits(states, batch, coarse))
        target = torch.cat([self.is_there(sample) for sample in batch.samples]).to(logits)
        accuracy = ((logits.detach() > 0) == (target > 0.5)).float().mean()
        return {
            "loss_presence": F.binary_cross_entropy_with_logits(logits, target),
            "presence_accuracy": accuracy,
        }

    def text_prompt(self, hidden: HiddenRows) -> TextPrompt:
        """Learned mixture of the layers' hidden states (float32), projected into SAM's prompt space."""
        # Hidden states hold outliers: summing dozens of layers in half precision would lose the others.
        with torch.autocast(hidden.states.device.type, enabled=False):
            weights = self.text_layer_weights.float().softmax(dim=0)
            mixture = torch.einsum("l,lpd->pd", weights, hidden.states.float())
        return TextPrompt(self.text_proj(mixture.to(self.text_proj.weight.dtype)), hidden.phrase_ids)

    def _prompts(self, states: LMMStates) -> list[TextPrompt] | None:
        """Text prompts of every sample; None where the refiner takes none."""
        if not self.uses_text:
            return None
        assert states.hidden is not None  # `capture` asks for them
        return [self.text_prompt(rows) for rows in states.hidden]

    def _targets(self, batch: GroundingBatch, logits: Sequence[Tensor]) -> list[Tensor]:
        """Target masks at the size of the predictions, bool, on their device."""
        targets = []
        for sample, inputs, maps in zip(batch.samples, batch.inputs, logits):
            masks = torch.from_numpy(_target_masks(sample)).to(maps.device)
            if self.target_resolution == "processor":
                masks = resize_masks(masks, inputs.grid.resized_size)
            targets.append(resize_masks(masks, (maps.shape[-2], maps.shape[-1])))
        return targets


def _target_masks(sample: Sample) -> np.ndarray:
    """Bool ``[K, H, W]`` of a sample with K phrases."""
    if sample.masks is None or len(sample.masks) != len(sample.phrases):
        count = "no" if sample.masks is None else len(sample.masks)
        raise DataError(
            f"{sample.record_id}: {count} target masks, {len(sample.phrases)} phrases; training needs one each"
        )
    return sample.masks


def _crop(maps: Tensor, grid: PatchGrid) -> Tensor:
    rows, cols = grid.crop_window((maps.shape[-2], maps.shape[-1]))
    return maps[..., rows, cols]
