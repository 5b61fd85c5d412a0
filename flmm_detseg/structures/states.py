"""What heads ask an LMM adapter for, and what the adapter gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures.grid import PatchGrid
from flmm_detseg.structures.maps import LogitMaps, PackedMasks
from flmm_detseg.structures.regions import Region
from flmm_detseg.structures.sample import RGB, Sample


@dataclass(frozen=True)
class CaptureSpec:
    """What must be captured in one LMM forward; nothing else is kept.

    Attributes:
        attention: Attention rows of phrase tokens on image tokens (the adapter's ``rows`` settings say which
            layers, heads and which merge).
        hidden: Decoder layers, 1..L, after which hidden rows of phrase tokens are wanted (L: after the final norm);
            ``"all"`` for every one. Kept ascending, each once.
        vision_layers: Indices into the vision tower's hidden states (0 = embeddings) to return as feature
            maps.
        logits: Logits of the language head over the text positions.
        base_logits: The same of the untouched LMM (no added part), for distillation, of the samples that it can read;
            a second pass without gradient.
        answer: Last states over the answer, from the prompt's last token on.
        likelihood: How likely the language model finds each phrase token where it stands.

    Raises:
        ConfigError: ``hidden`` is neither ``"all"`` nor layers of 1 or higher.
    """

    attention: bool = False
    hidden: tuple[int, ...] | Literal["all"] = ()
    vision_layers: tuple[int, ...] = ()
    logits: bool = False
    base_logits: bool = False
    answer: bool = False
    likelihood: bool = False

    def __post_init__(self) -> None:
        if self.hidden == "all":
            return
        listed = isinstance(self.hidden, Iterable) and not isinstance(self.hidden, str)
        if not listed or not all(_is_layer(layer) for layer in self.hidden):
            raise ConfigError(
                f"`hidden` is {self.hidden!r}; give decoder layers, counted from 1, or 'all', or () for none"
            )
        object.__setattr__(self, "hidden", tuple(sorted(set(self.hidden))))

    def hidden_layers(self, num_layers: int) -> tuple[int, ...]:
        """:attr:`hidden` as layers of a language model with ``num_layers``, ascending.

        Args:
            num_layers: Decoder layers of the language model.

        Returns:
            Layers from 1; the last one is the state after the final norm.

        Raises:
            ConfigError: It has no such layer.
        """
        if self.hidden == "all":
            return tuple(range(1, num_layers + 1))
        if wrong := [layer for layer in self.hidden if layer > num_layers]:
            raise ConfigError(
                f"hidden rows of layers {wrong} do not exist; the language model has layers 1..{num_layers}"
            )
        return self.hidden

    def union(self, other: CaptureSpec) -> CaptureSpec:
        """The smallest spec that serves both."""
        return CaptureSpec(
            attention=self.attention or other.attention,
            hidden="all" if "all" in (self.hidden, other.hidden) else (*self.hidden, *other.hidden),
            vision_layers=tuple(sorted(set(self.vision_layers) | set(other.vision_layers))),
            logits=self.logits or other.logits,
            base_logits=self.base_logits or other.base_logits,
            answer=self.answer or other.answer,
            likelihood=self.likelihood or other.likelihood,
        )

    @property
    def reads_text(self) -> bool:
        """Whether anything is asked for that the language model gives."""
        return bool(self.attention or self.hidden or self.logits or self.answer or self.likelihood)


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class ImageInputs:
    """One image as an LMM family's processor prepared it (CPU tensors).

    Attributes:
        pixel_values: Family's own layout, float32 (LLaVA ``[3, S, S]``, LLaVA-NeXT ``[tiles, 3, S, S]``, Qwen
            ``[patches, values]``).
        grid: Geometry of the image tokens.
        make_view: Gives :attr:`view`; few heads ask for it.
        further: What the model's own forward wants to know of the image beside, by argument.
        modality: See :attr:`Sample.modalities`.
        task: Of the sample, where a part of the LMM reads images of it otherwise; else empty.
    """

    pixel_values: Tensor
    grid: PatchGrid
    make_view: Callable[[], Tensor] | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)
    modality: str = RGB
    task: str = ""

    @property
    def view(self) -> Tensor | None:
        """Normalised pixels of the view of the whole image, float32 ``[3, H, W]``; None where there are none."""
        return None if self.make_view is None else self.make_view()

    def shows_same(self, other: ImageInputs) -> bool:
        """Whether it is the same picture to the model, bit for bit."""
        mine, theirs = self.further, other.further
        return (
            self.grid == other.grid
            and (self.modality, self.task) == (other.modality, other.task)
            and torch.equal(self.pixel_values, other.pixel_values)
            and mine.keys() == theirs.keys()
            and all(torch.equal(value, theirs[name]) for name, value in mine.items())
        )


@dataclass(frozen=True)
class LMMInputs:
    """One sample as an LMM family's processor prepared it (CPU tensors, unbatched).

    T counts tokens with the image token repeated once per image position.

    Attributes:
        input_ids: int64 ``[T]``.
        phrase_tokens: bool ``[K, T]``; True where the token belongs to the phrase. Phrases may overlap: a
            token can belong to several.
        labels: int64 ``[T]``; the token itself on the answer, -100 elsewhere.
        image_mask: bool ``[T]``; True at image tokens (newline tokens included), image after image.
        prefix_length: Number of leading tokens that depend on images and prompt only.
        images: In the order of the prompt. The first one is the one that is looked at: attention, vision maps and
            masks are about it.
        record_id: Of the sample, for errors.
        label_weights: float32 ``[T]``, weight of each label in the language loss (see :attr:`Sample.sections`);
            None for 1.
        position_ids: int64 ``[A, T]``, rotary positions by axis; None: one axis, 0..T-1.
        regions: Regions in the order of their places in the sequence, each with where it lies in its image's vision
            maps, as the part that reads it says it (:meth:`SlotFiller.locate`).
        slots: int64 ``[n]``: places of these regions in the sequence, all of them after the images.
    """

    input_ids: Tensor
    phrase_tokens: Tensor
    labels: Tensor
    image_mask: Tensor
    prefix_length: int
    images: tuple[ImageInputs, ...]
    record_id: str
    label_weights: Tensor | None = None
    position_ids: Tensor | None = None
    regions: tuple[tuple[Region, Tensor], ...] = ()
    slots: Tensor | None = None

    @property
    def grid(self) -> PatchGrid:
        """Geometry of the image that is looked at."""
        return self.images[0].grid

    @property
    def pixel_values(self) -> Tensor:
        """Pixels of the image that is looked at, in the family's own layout."""
        return self.images[0].pixel_values

    @property
    def next_position(self) -> int:
        """Rotary position of the token that would come next."""
        return len(self.input_ids) if self.position_ids is None else int(self.position_ids.max()) + 1

    def with_pixels(self, pixel_values: Tensor) -> Self:
        """The same sample with other pixels of the image that is looked at."""
        first = replace(self.images[0], pixel_values=pixel_values)
        return replace(self, images=(first, *self.images[1:]))

    @property
    def num_phrases(self) -> int:
        """K."""
        return int(self.phrase_tokens.shape[0])


@dataclass(frozen=True)
class GroundingBatch:
    """A batch as heads see it: the records and their prepared inputs, index by index."""

    samples: list[Sample]
    inputs: list[LMMInputs]

    def __post_init__(self) -> None:
        assert len(self.samples) == len(self.inputs)

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, places: Sequence[int]) -> GroundingBatch:
        """The samples at some places, in the order given."""
        return GroundingBatch([self.samples[i] for i in places], [self.inputs[i] for i in places])


@dataclass(frozen=True)
class HiddenRows:
    """Hidden states of the phrase tokens of one sample.

    Attributes:
        states: ``[n, P, d]``: :attr:`layers` (layer L after the final norm), P phrase tokens in sequence order (a
            token of two overlapping phrases has two rows); dtype of the LMM.
        phrase_ids: int64 ``[P]``, phrase of each row.
        layers: The n decoder layers that were captured, ascending; left out: 1..n. They may be more than one head
            asked for: :meth:`of` takes its own.
    """

    states: Tensor
    phrase_ids: Tensor
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            object.__setattr__(self, "layers", tuple(range(1, len(self.states) + 1)))
        assert len(self.layers) == len(self.states)

    def of(self, layers: Sequence[int]) -> Tensor:
        """States of some of the layers, ``[len(layers), P, d]``, in the order asked for; all of them as they are."""
        if tuple(layers) == self.layers:
            return self.states
        missing = set(layers) - set(self.layers)
        assert not missing, (
            f"layers {sorted(missing)} were not captured; a head asks for its own in `capture`"
        )
        return self.states[[self.layers.index(layer) for layer in layers]]


@dataclass(frozen=True)
class LMMStates:
    """What one adapter call captured; lists run over the samples of the batch.

    Attributes:
        attention: Per sample ``[K, C, rows, cols]`` float32 in [0, 1], on :attr:`PatchGrid.output_grid`;
            channels in the order of ``LMMAdapter.attention_pairs``, two-level families: all coarse ones, then all fine.
        hidden: Per sample :class:`HiddenRows`.
        vision: Per sample, per asked layer: ``[d_v, rows, cols]`` of the base (squared) image.
        logits: Per sample ``[T - logits_start, V]``, dtype of the LMM: predictions of the answer's tokens.
            Row i predicts token ``logits_start + i + 1``.
        logits_start: Per sample, position in the sequence of row 0 of ``logits``: the last token of the
            prefix.
        base_logits: As ``logits``, of the untouched LMM, perhaps of fewer tokens; None for samples that it cannot read:
            they point at regions, or show images that a projector of one's own is for.
        added_ids: With ``base_logits``: ids of added tokens, of all samples. The untouched LMM has none of them (where
            its table has rows to spare, its logits there mean nothing).
        answer: Per sample the last states (after the final norm) from the prompt's last token on, ``[T - prefix_length
            + 1, d]``, dtype of the LMM: row i is of token ``prefix_length - 1 + i`` and predicts the next one.
        likelihood: Per sample float32 ``[P, 2]``, without gradient: log-probability of each phrase token (rows as in
            :class:`HiddenRows`) after all that stands before it, and of the token that is the likeliest there.
    """

    attention: list[Tensor] | None = None
    hidden: list[HiddenRows] | None = None
    vision: list[dict[int, Tensor]] | None = None
    logits: list[Tensor] | None = None
    logits_start: list[int] | None = None
    base_logits: list[Tensor | None] | None = None
    added_ids: tuple[int, ...] | None = None
    answer: list[Tensor] | None = None
    likelihood: list[Tensor] | None = None


@dataclass
class Prediction:
    """What a model predicts for one sample; tensors on the model's device unless moved.

    Masks and logits at image size are made when they are asked for, and kept from then on; for many phrases or large
    images take them phrase by phrase: ``mask_maps.enlarge(slice(i, i + 1))``, ``packed.unpack(slice(i, i + 1))``.

    Attributes:
        record_id: Of the sample.
        image_size: Original ``(H, W)``.
        coarse_logits: Mask head's logits, un-padded, ``[K, h, w]`` float32 (h, w are the mask head's own
            size).
        refined: Refiner's logits at its own size; None without refiner.
        packed: The masks, a bit a pixel.
        boxes_xyxy: float32 ``[K, 4]``, half-open pixel box of each mask in the original image; zeros when
            empty.
        scores: float32 ``[K]``: mean foreground probability inside the mask, 0 when it is empty.
        attention: The stack of :class:`LMMStates` when it was asked to be kept.
        presence: float32 ``[K]``: calibrated probability that the image shows what the phrase names, whatever its mask
            is; None where the head has no presence head.
    """

    record_id: str
    image_size: tuple[int, int]
    coarse_logits: Tensor
    refined: LogitMaps | None
    packed: PackedMasks
    boxes_xyxy: Tensor
    scores: Tensor
    attention: Tensor | None = None
    presence: Tensor | None = None

    @property
    def coarse(self) -> LogitMaps:
        """:attr:`coarse_logits` with the way to the image (bilinear)."""
        return LogitMaps(self.coarse_logits, self.image_size)

    @property
    def mask_maps(self) -> LogitMaps:
        """What the masks are cut from: refined logits, else coarse ones."""
        return self.coarse if self.refined is None else self.refined

    @cached_property
    def masks(self) -> Tensor:
        """Bool ``[K, H, W]``: ``mask_logits > 0`` (probability above 0.5)."""
        return self.packed.unpack()

    @cached_property
    def refined_logits(self) -> Tensor | None:
        """Refiner's logits at original size ``[K, H, W]`` float32, None without refiner."""
        return None if self.refined is None else self.refined.enlarge()

    @cached_property
    def mask_logits(self) -> Tensor:
        """Logits the masks are cut from, original size ``[K, H, W]``."""
        return self.coarse.enlarge() if self.refined_logits is None else self.refined_logits

    def only_present(self, min_presence: float) -> Prediction:
        """The same with empty masks (boxes and scores 0) for phrases that are not there.

        Args:
            min_presence: Least probability of presence of one that is.

        Returns:
            A copy; logits and attention are those of all phrases as before.

        Raises:
            ConfigError: Nothing is known of presence.
        """
        if self.presence is None:
            raise ConfigError(
                f"{self.record_id}: the model has no presence head, so nothing says what is there"
            )
        there = self.presence >= min_presence
        return replace(
            self,
            packed=self.packed.only(there),
            boxes_xyxy=self.boxes_xyxy * there[:, None],
            scores=self.scores * there,
        )

    def part(self, chosen: Sequence[int]) -> Prediction:
        """Some of the masks, with what belongs to them."""
        return replace(
            self,
            coarse_logits=self.coarse_logits[chosen],
            refined=None if self.refined is None else replace(self.refined, maps=self.refined.maps[chosen]),
            packed=replace(self.packed, bits=self.packed.bits[chosen]),
            boxes_xyxy=self.boxes_xyxy[chosen],
            scores=self.scores[chosen],
            attention=None if self.attention is None else self.attention[chosen],
            presence=None if self.presence is None else self.presence[chosen],
        )

    def cpu(self) -> Prediction:
        """A copy with every tensor on the CPU."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Prediction(**{k: v.cpu() if hasattr(v, "cpu") else v for k, v in values.items()})
