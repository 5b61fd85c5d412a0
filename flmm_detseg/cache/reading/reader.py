"""From an image in groups of patches to the embeddings that the language model reads; training and serving use it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flmm_detseg.cache.fingerprint import Fingerprints
from flmm_detseg.cache.reading.layout import NUM_SEPARATORS, PromptLayout
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.reading.prompt_parts import (
    PartitionedInputs,
    PromptParts,
    split_prompt,
    with_partition,
)
from flmm_detseg.cache.regions.sources import Partitioner
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms import LMMAdapter
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.added.slot_filler import SlotFiller
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower
from flmm_detseg.lmms.processors import PixelProcessor
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import LMMInputs, Sample
from flmm_detseg.structures.partition import PatchPartition

PROJECTORS = ("shared", "separate")


class GroupReader(LMMAdapter):
    """An LMM whose images are read in isolated groups of patches, background first: one sample at a time.

    :class:`~flmm_detseg.cache.cached_lmm.CachedLMM` adds batches, answers and training.

    Args:
        lmm: A LLaVA-1.5, or its config.
        partitioner: Finds the objects of a sample, or its config.
        positions: ``"packed"`` or ``"raster"``, see :class:`~flmm_detseg.cache.reading.layout.PromptLayout`.
        letterbox: ``"background"`` or ``"drop"``: what is done with patches that show padding.
        projectors: ``"shared"`` or ``"separate"``: one for both groups, or one each.
        prefusion: Settings of pre-fusion, or their config; None for none.
        order: ``"background"`` puts it first; ``"image"`` leaves the sequence as it is.

    Attributes:
        tower: The vision tower, read in groups.
        feature_layer: The hidden state that the projector reads.
        layout: Order and positions of a prompt.
        separators: ``[4, d]``: begin and end of background, begin and end of objects; to begin with the mean embedding
            of the words "background" and "objects".
        background_projector: The background's own projector; None: the LMM's.
        object_projector: The objects' own projector; None: the LMM's.
        prefusion: See :class:`~flmm_detseg.cache.reading.prefusion.QuestionFusion`; None without.
        fingerprints: Names of everything that stored things depend on.

    Raises:
        ConfigError: A setting is unknown, or the LMM cannot be read in groups.
    """

    def __init__(
        self,
        lmm: LMMAdapter | Mapping[str, Any],
        partitioner: Partitioner | Mapping[str, Any],
        positions: str = "raster",
        letterbox: str = "background",
        projectors: str = "shared",
        prefusion: PreFusion | Mapping[str, Any] | None = None,
        order: str = "background",
    ) -> None:
        super().__init__()
        built, self.tower = _readable(MODELS.build(lmm) if isinstance(lmm, Mapping) else lmm)
        # In a tuple: submodules of it would have a second name.
        self._wrapped = (built,)
        self.model, self.facts, self.lora_groups = built.model, built.facts, built.lora_groups
        self.added_tokens = built.added_tokens
        if built.added_parts:
            if prefusion is not None:
                raise ConfigError(
                    "pre-fusion reads words, and regions are none: leave `prefusion` or `lmm.parts` out"
                )
            self.parts = built.parts
        self.attention_pairs, self.ranked_heads = built.attention_pairs, built.ranked_heads
        self.feature_layer = self.tower.feature_layer
        self.partitioner = MODELS.build(partitioner) if isinstance(partitioner, Mapping) else partitioner
        limit = built.decoder_module.config.max_position_embeddings
        processor = built.processor
        assert processor is None or isinstance(processor, PixelProcessor)  # LLaVA's pixels are our own
        self.processor = copy.copy(processor)
        if self.processor is not None:
            settings = self.processor.settings
            limit = settings.max_length
            # Room for the separators: texts are cut where the longer sequence would end.
            self.processor.settings = replace(settings, max_length=max(1, limit - NUM_SEPARATORS))
        rows, cols = self.vision_grid
        prefusion = MODELS.build(prefusion) if isinstance(prefusion, Mapping) else prefusion
        compressed = 0 if prefusion is None else prefusion.num_compressed
        self.layout = PromptLayout(rows * cols, positions, letterbox, limit, compressed, order)
        words = built.class_embeddings(["background", "objects"])
        self.separators = nn.Parameter(words.repeat_interleave(2, dim=0), requires_grad=False)
        if projectors not in PROJECTORS:
            raise ConfigError(f"`projectors` is {projectors!r}; allowed: {', '.join(PROJECTORS)}")
        own = projectors == "separate"
        self.background_projector = copy.deepcopy(built.part_module("projector")).float() if own else None
        self.object_projector = copy.deepcopy(built.part_module("projector")).float() if own else None
        self.prefusion = None if prefusion is None else prefusion.build(built)
        self.fingerprints = Fingerprints(self)

    @property
    def lmm(self) -> LMM:
        """The wrapped adapter."""
        return self._wrapped[0]

    @property
    def added_parts(self) -> Mapping[str, LMMPart]:
        """See :class:`LMMAdapter`."""
        return self.lmm.added_parts

    @property
    def vision_grid(self) -> tuple[int, int]:
        """``(rows, cols)`` of patches the vision tower sees."""
        grid = self.facts.vision.grid
        assert grid is not None  # a tower that is read in groups has one
        return grid

    @property
    def position_limit(self) -> int | None:
        """See :class:`LMMAdapter`."""
        return self.lmm.position_limit

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """See :class:`LMMAdapter`."""
        self.lmm.freeze_unread(vision_layers)

    # One sample.

    def prepare(self, sample: Sample) -> PartitionedInputs:
        """See :class:`LMMAdapter`; also asks the partitioner.

        Args:
            sample: Image, text and phrases.

        Returns:
            The sample in the LMM's own order, and the groups of its patches (CPU).

        Raises:
            DataError: The partitioner cannot read the sample.
        """
        item = self.prepare_text(sample)
        return with_partition(item, self.partitioner(sample, item.grid))

    def prepare_text(self, sample: Sample) -> LMMInputs:
        """Everything of :meth:`prepare` but the partition.

        Args:
            sample: Image, text and phrases.

        Returns:
            The sample in the LMM's own order, cut so that the separators have room (CPU); in base mode what the LMM
            itself makes of it.

        Raises:
            ConfigError: The adapter has no tokenizer.
            DataError: The sample has several images.
        """
        if self.lmm.in_base_mode:
            return self.lmm.prepare(sample)
        if self.processor is None:
            raise ConfigError("the adapter was built without a tokenizer; pass `tokenizer`")
        if sample.more_images:
            raise DataError(
                f"{sample.record_id}: the prompt has {1 + len(sample.more_images)} images; the background cache reads "
                "one a prompt: ask about one, or use the LMM without it"
            )
        return self.lmm.with_parts(self.processor(sample), sample)

    def prompt_parts(
        self, item: LMMInputs, partition: PatchPartition | None = None, changed: Tensor | None = None
    ) -> PromptParts:
        """See :func:`~flmm_detseg.cache.reading.prompt_parts.split_prompt`."""
        return split_prompt(self.layout, item, partition, changed)

    # From patches to embeddings: training and serving both use these.

    def pixels(self, item: LMMInputs) -> Tensor:
        """The tower's input of one sample ``[3, S, S]``, on its device."""
        return item.pixel_values.to(self.device, self.lmm.dtype)

    def group_features(self, item: LMMInputs, indices: Tensor) -> Tensor:
        """Vision features of one group, before the projector, ``[n, D]``."""
        return self.tower.features_of(self.pixels(item)[None], indices)[0]

    def prefix_embeds(self, system_ids: Tensor, background: Tensor) -> Tensor:
        """Embeddings of the prefix.

        Args:
            system_ids: int64 ``[S]``.
            background: Vision features ``[n, D]`` of its tokens, see :meth:`sent_features`.

        Returns:
            ``[S + 2 + n, d]``.
        """
        return self._embeds(self.background_projector, 0, system_ids, background, first=True)

    def suffix_embeds(self, objects: Tensor, text_ids: Tensor) -> Tensor:
        """Embeddings of what follows the prefix, ``[m + 2 + text, d]``; ``objects`` are features ``[m, D]``."""
        return self._embeds(self.object_projector, 2, text_ids, objects, first=False)

    def _embeds(
        self, projector: nn.Module | None, separator: int, ids: Tensor, features: Tensor, *, first: bool
    ) -> Tensor:
        text = self.lmm.words(ids)
        start, end = self.separators[separator : separator + 2].to(text.dtype).split(1)
        image = [start, self._projected(projector, features), end]
        return torch.cat([text, *image] if first else [*image, text])

    def _projected(self, projector: nn.Module | None, features: Tensor) -> Tensor:
        projector = self.lmm.part_module("projector") if projector is None else projector
        return projector(features.to(next(projector.parameters()).dtype)).to(self.lmm.dtype)

    def background_tokens(self, features: Tensor) -> Tensor:
        """Projected patches of a background, ``[n, d]``: what pre-fusion reads."""
        return self._projected(self.background_projector, features)

    def sent_features(self, background: Tensor, indices: Tensor) -> Tensor:
        """Features of the tokens that stand for a background: its own, or the compressor's.

        Args:
            background: Vision features ``[n, D]``.
            indices: Its patches, int64 ``[n]``.

        Returns:
            ``[n, D]``, or ``[C * C, D]`` of a compressor.
        """
        compressor = None if self.prefusion is None else self.prefusion.compressor
        return background if compressor is None else compressor(background.to(self.lmm.dtype), indices)

    def image_order_embeds(self, features: Tensor, part: PromptParts) -> Tensor:
        """Embeddings of a whole prompt in image order, ``[T, d]``.

        Args:
            features: Vision features of all patches, ``[N, D]``.
            part: The prompt.

        Returns:
            ``[T, d]`` in the LMM's dtype, with gradients.
        """
        objects = self._projected(self.object_projector, features[part.objects])
        tokens = torch.cat([self.background_tokens(features[part.background]), objects])
        order = torch.cat([part.background, part.objects]).argsort()
        return torch.cat([self.lmm.words(part.system_ids), tokens[order], self.lmm.words(part.text_ids)])

    def with_regions(self, embeds: Tensor, item: LMMInputs) -> Tensor:
        """Writes embeddings of regions into their places in the text.

        They are read from the whole image, not from its groups: what was cached does not change them.

        Args:
            embeds: Of a sequence that ends with the sample's text, ``[T, d]``.
            item: The sample.

        Returns:
            ``[T, d]``.
        """
        if not item.regions:
            return embeds
        places = torch.arange(len(item.input_ids)) + len(embeds) - len(item.input_ids)
        return self.lmm.fill_regions(embeds[None], [[0]], [places], [item], self.lmm.region_maps([item]))[0]

    def isolated_features(self, item: PartitionedInputs) -> Tensor:
        """Vision features of all patches of one sample, each group on its own, ``[N, D]``."""
        return self.group_states([item], (self.feature_layer,))[self.feature_layer][0]

    def vision_states(self, item: PartitionedInputs, layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of the isolated tower as maps: per layer ``[D, rows, cols]``."""
        return self._vision_maps(self.group_states([item], layers), [[0]], layers)[0]

    def group_states(self, inputs: Sequence[PartitionedInputs], layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of all patches, each group on its own: per layer ``[B, N, D]``."""
        groups = torch.stack([self.layout.groups(item.partition) for item in inputs])
        pixels = torch.stack([self.pixels(item) for item in inputs])
        return self.tower.states(pixels, groups.to(pixels.device), self.layout.num_groups, layers)

    def _vision_maps(
        self, states: dict[int, Tensor], members: Sequence[Sequence[int]], layers: Collection[int]
    ) -> list[dict[int, Tensor]]:
        rows = {member: row for row, samples in enumerate(members) for member in samples}
        return [
            {layer: states[layer][rows[index]].T.unflatten(1, self.vision_grid) for layer in layers}
            for index in range(len(rows))
        ]


def _readable(lmm: LMMAdapter) -> tuple[LMM, IsolatedTower]:
    """An LMM that can be read in groups, and its tower.

    Raises:
        ConfigError: Another family, an added part that changes what an image becomes, a sliding window, or Conv-LoRA in
            the vision tower.
    """
    if other := [name for name, part in lmm.added_parts.items() if not isinstance(part, SlotFiller)]:
        raise ConfigError(
            f"the background cache does not read an LMM with a projector of its own ({', '.join(other)}): leave it out "
            "of `lmm.parts` and use CachedLMM(projectors='separate'), which trains and stores its own"
        )
    tower = lmm.grouped_tower() if isinstance(lmm, LMM) else None
    if not isinstance(lmm, LMM) or tower is None:
        raise ConfigError(
            f"the background cache reads LLaVA-1.5 (LlavaAdapter), not {type(lmm).__name__}: it needs one square view "
            "and a tower whose patches can be read in groups"
        )
    if lmm.facts.windows:
        raise ConfigError("the background cache needs a language model without a sliding window")
    if any(group.kind == "conv_lora" and group.part == "vision" for group in lmm.lora_groups.values()):
        raise ConfigError("Conv-LoRA in the vision tower looks across the borders of groups; use plain LoRA")
    return lmm, tower
