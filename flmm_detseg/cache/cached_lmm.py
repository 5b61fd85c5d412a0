"""A LLaVA that reads background and objects apart, so that what it made of a background can be kept."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.reading.layout import NUM_SEPARATORS, PromptLayout, only_sent
from flmm_detseg.cache.reading.packing import PackedPrompts, pack_prompts, phrase_places, share_images
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.reading.prompt_parts import (
    PartitionedInputs,
    PromptParts,
    split_prompt,
    with_partition,
)
from flmm_detseg.cache.reading.stale_patches import check_share, see_groups
from flmm_detseg.cache.regions.sources import Partitioner
from flmm_detseg.cache.serving.answer import Answer, answer
from flmm_detseg.cache.serving.fingerprint import Fingerprints
from flmm_detseg.cache.trainable import layout_facts, set_trainable
from flmm_detseg.cache.wrapped import WrappedLlava
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LMMAdapter
from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.lmms.capture.packing import PhraseRows, answer_states
from flmm_detseg.lmms.capture.per_sample import hidden_rows, split_attention, split_hidden
from flmm_detseg.lmms.capture.row_tap import RowTap
from flmm_detseg.lmms.parts.isolated_tower import feature_layer, gathered_states, isolated_states
from flmm_detseg.lmms.turns import exclusive
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, Generation, LMMInputs, LMMStates, Phrase, Sample
from flmm_detseg.structures.partition import PatchPartition

PROJECTORS = ("shared", "separate")


@MODELS.register_module()
class CachedLMM(WrappedLlava):
    """LLaVA-1.5 with isolated groups of patches, background first.

    A full :class:`LMMAdapter`: heads, trainer, evaluation and grounding use it like the LLaVA it wraps, whose
    parameters keep their names (``model.*``). What it gives depends on the partition alone, never on whether something
    came out of a cache; serving from one is :class:`~flmm_detseg.cache.serving.session.StreamSession`.

    Args:
        lmm: The LLaVA, or its config. Its LoRA, ``frozen`` and attention rows apply.
        partitioner: Finds the objects of a sample, or its config.
        positions: ``"packed"`` or ``"raster"``, see :class:`~flmm_detseg.cache.reading.layout.PromptLayout`.
        letterbox: ``"background"`` or ``"drop"``.
        projectors: ``"shared"``: the LLaVA's own. ``"separate"``: one each for background and objects, float32 copies
            of it to begin with.
        prefusion: Settings of pre-fusion, or their config; None for none.
        order: ``"image"`` only isolates the groups and leaves the sequence as it is, see :class:`PromptLayout`; nothing
            of it can be cached.
        train: Trained besides the LLaVA's LoRA: any of ``"separators"``, ``"projectors"``, ``"prefusion"``.
        train_layers: Last decoder layers of the language model that are trained, too.
        stale_share: Least and largest share of stale background patches in training, see :func:`see_groups`; None: 0.

    Attributes:
        separators: ``[4, d]``: begin and end of background, begin and end of objects; to begin with the mean embedding
            of the words "background" and "objects".
        prefusion: See :class:`~flmm_detseg.cache.reading.prefusion.QuestionFusion`; None without.

    Raises:
        ConfigError: A setting is unknown, or the LMM is no LLaVA-1.5 with a CLIP tower.
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
        train: Sequence[str] = (),
        train_layers: int = 0,
        stale_share: Sequence[float] | None = None,
    ) -> None:
        lmm = MODELS.build(lmm) if isinstance(lmm, Mapping) else lmm
        super().__init__(lmm)
        self.partitioner = MODELS.build(partitioner) if isinstance(partitioner, Mapping) else partitioner
        limit = lmm.model.config.text_config.max_position_embeddings
        self.processor = copy.copy(lmm.processor)
        if self.processor is not None:
            settings = self.processor.settings
            limit = settings.max_length
            # Room for the separators: texts are cut where the longer sequence would end.
            self.processor.settings = replace(settings, max_length=max(1, limit - NUM_SEPARATORS))
        rows, cols = lmm.vision_grid
        prefusion = MODELS.build(prefusion) if isinstance(prefusion, Mapping) else prefusion
        compressed = 0 if prefusion is None else prefusion.num_compressed
        self.layout = PromptLayout(rows * cols, positions, letterbox, limit, compressed, order)
        self.stale_share = check_share(stale_share, self.layout)
        parts = lmm.model.model
        self.feature_layer = feature_layer(parts.vision_tower, lmm.model.config.vision_feature_layer)
        words = lmm.class_embeddings(["background", "objects"])
        self.separators = nn.Parameter(words.repeat_interleave(2, dim=0), requires_grad=False)
        if projectors not in PROJECTORS:
            raise ConfigError(f"`projectors` is {projectors!r}; allowed: {', '.join(PROJECTORS)}")
        own = projectors == "separate"
        self.background_projector = copy.deepcopy(parts.multi_modal_projector).float() if own else None
        self.object_projector = copy.deepcopy(parts.multi_modal_projector).float() if own else None
        self.prefusion = None if prefusion is None else prefusion.build(lmm)
        set_trainable(self, train, train_layers)
        self.frozen = lmm.frozen and not any(p.requires_grad for p in self.parameters())
        self.fingerprints = Fingerprints(self)
        self._stock = False

    @property
    def trained_layout(self) -> dict[str, Any]:
        """See :class:`LMMAdapter`."""
        return layout_facts(self)

    def train(self, mode: bool = True) -> Self:
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode. Weights are about to change: fingerprints are
        taken anew.
        """
        # Not within another thread's request.
        with exclusive(self.model):
            if mode:
                self.fingerprints.invalidate()
            return super().train(mode)

    @contextmanager
    def base_mode(self) -> Iterator[None]:
        """See :class:`LMMAdapter`: one group, the LLaVA's own order, its own projector."""
        with exclusive(self.model):
            before, self._stock = self._stock, True
            try:
                with self.lmm.base_mode():
                    yield
            finally:
                self._stock = before

    # One sample.

    def prepare(self, sample: Sample) -> PartitionedInputs:
        """See :class:`LMMAdapter`; also asks the partitioner.

        Raises:
            DataError: The partitioner cannot read the sample.
        """
        item = self.prepare_text(sample)
        return with_partition(item, self.partitioner(sample, item.grid))

    def prepare_text(self, sample: Sample) -> LMMInputs:
        """Everything of :meth:`prepare` but the partition."""
        if self.processor is None:
            raise ConfigError("the adapter was built without a tokenizer; pass `tokenizer`")
        return self.processor(sample)

    def parts(
        self, item: LMMInputs, partition: PatchPartition | None = None, stale: Tensor | None = None
    ) -> PromptParts:
        """See :func:`~flmm_detseg.cache.reading.prompt_parts.split_prompt`."""
        return split_prompt(self.layout, item, partition, stale)

    # From patches to embeddings: training and serving both use these.

    def pixels(self, item: LMMInputs) -> Tensor:
        """The tower's input of one sample ``[3, S, S]``, on its device."""
        return item.pixel_values.to(self.device, self.model.dtype)

    def group_features(self, item: LMMInputs, indices: Tensor) -> Tensor:
        """Vision features of one group, before the projector, ``[n, D]``."""
        if not len(indices):
            return torch.zeros(0, self.vision_channels, dtype=self.model.dtype, device=self.device)
        tower, layer = self.model.model.vision_tower, self.feature_layer
        return gathered_states(tower, self.pixels(item), indices, (layer,))[layer]

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
        text = self._words(ids)
        start, end = self.separators[separator : separator + 2].to(text.dtype).split(1)
        image = [start, self._projected(projector, features), end]
        return torch.cat([text, *image] if first else [*image, text])

    def _words(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids.to(self.device))

    def _projected(self, projector: nn.Module | None, features: Tensor) -> Tensor:
        projector = self.model.model.multi_modal_projector if projector is None else projector
        return projector(features.to(next(projector.parameters()).dtype)).to(self.model.dtype)

    def background_tokens(self, features: Tensor) -> Tensor:
        """Projected patches of a background, ``[n, d]``: what pre-fusion reads."""
        return self._projected(self.background_projector, features)

    def sent_features(self, background: Tensor, indices: Tensor) -> Tensor:
        """Features of the tokens that stand for a background: its own, or the compressor's.

        Args:
            background: Vision features ``[n, D]``.
            indices: Its patches, int64 ``[n]``.
        """
        compressor = None if self.prefusion is None else self.prefusion.compressor
        return background if compressor is None else compressor(background.to(self.model.dtype), indices)

    def image_order_embeds(self, features: Tensor, part: PromptParts) -> Tensor:
        """Embeddings of a whole prompt in image order, ``[T, d]``.

        Args:
            features: Vision features of all patches, ``[N, D]``.
            part: The prompt.
        """
        objects = self._projected(self.object_projector, features[part.objects])
        tokens = torch.cat([self.background_tokens(features[part.background]), objects])
        order = torch.cat([part.background, part.objects]).argsort()
        return torch.cat([self._words(part.system_ids), tokens[order], self._words(part.text_ids)])

    def _sequences(self, features: Tensor, parts: Sequence[PromptParts], stored: Tensor) -> Tensor:
        """Embeddings of a batch of prompts, ``[B, T, d]``, from features ``[B, N, D]``, of backgrounds ``stored``."""
        if self.layout.order == "image":
            rows = [self.image_order_embeds(*pair) for pair in zip(features, parts, strict=True)]
            return pad_sequence(rows, batch_first=True)
        backgrounds = [found[part.background] for found, part in zip(stored, parts, strict=True)]
        suffixes = [
            self.suffix_embeds(found[part.objects], part.text_ids)
            for found, part in zip(features, parts, strict=True)
        ]
        if self.prefusion is not None:
            tokens = [self.background_tokens(found) for found in backgrounds]
            suffixes = self.prefusion(tokens, suffixes, parts)
        rows = [
            torch.cat(
                [self.prefix_embeds(part.system_ids, self.sent_features(found, part.background)), suffix]
            )
            for found, part, suffix in zip(backgrounds, parts, suffixes, strict=True)
        ]
        return pad_sequence(rows, batch_first=True)

    def decoder(self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None) -> PrefixDecoder:
        """The language model behind stored keys and values (or at the beginning)."""
        return PrefixDecoder(
            self.model.model.language_model, self.model.get_output_embeddings(), keys, values
        )

    def tap(self, positions: Tensor, phrase_ids: Tensor, columns: Tensor, num_phrases: int) -> RowTap:
        """A collector of attention rows with the adapter's settings; arguments as of :class:`RowTap`."""
        return RowTap(
            positions.to(self.device),
            phrase_ids.to(self.device),
            columns.to(self.device),
            num_phrases,
            layers=self.attention_layers,
            heads=None if self.lmm.rows.heads is None else self.attention_heads,
            merge=self.lmm.rows.merge,
        )

    # Batches.

    def encode(
        self,
        inputs: Sequence[LMMInputs],
        capture: CaptureSpec,
        image_keys: Sequence[str | None] | None = None,
    ) -> LMMStates:
        """See :class:`LMMAdapter`. Groups of all images run as one sequence of fixed length; only texts are padded.

        Questions about one image with the same groups share its row.
        """
        if self._stock:
            return self.lmm.encode(inputs, capture, image_keys)
        if self.lmm.rows.attention == "eager":
            raise ConfigError("rows `attention`='eager' compares with stock LLaVA; CachedLMM needs 'rows'")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            keys = image_keys if self.lmm.share_prefix else None
            groups = share_images(inputs, keys)
            firsts = [inputs[members[0]] for members in groups]
            longest = [max(len(inputs[member].input_ids) for member in members) for members in groups]
            layers = (self.feature_layer, *capture.vision_layers)
            heads, states, stored = see_groups(self, firsts, layers, longest)
            vision = self._vision_maps(states, groups, capture.vision_layers)
            if not (capture.attention or capture.hidden or capture.logits):
                return LMMStates(vision=vision)
            packed = pack_prompts(self.layout, heads, inputs, groups)
            embeds = self._sequences(states[self.feature_layer], packed.rows, stored)
            return replace(self._read(inputs, packed, embeds, capture), vision=vision)

    def isolated_features(self, item: LMMInputs) -> Tensor:
        """Vision features of all patches of one sample, each group for itself, ``[N, D]``."""
        return self.see([item], (self.feature_layer,))[self.feature_layer][0]

    def vision_states(self, item: LMMInputs, layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of the isolated tower as maps: per layer ``[D, rows, cols]``."""
        return self._vision_maps(self.see([item], layers), [[0]], layers)[0]

    def see(self, inputs: Sequence[LMMInputs], layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of all patches, each group for itself: per layer ``[B, N, D]``."""
        last = self.model.config.vision_config.num_hidden_layers
        if wrong := [layer for layer in layers if not 0 <= layer <= last]:
            raise ConfigError(f"vision_layers {wrong} do not exist; the tower has hidden states 0..{last}")
        groups = torch.stack([self.layout.groups(item.partition) for item in inputs])
        pixels = torch.stack([self.pixels(item) for item in inputs])
        return isolated_states(
            self.model.model.vision_tower, pixels, groups.to(pixels.device), self.layout.num_groups, layers
        )

    def _vision_maps(
        self, states: dict[int, Tensor], groups: Sequence[Sequence[int]], layers: Collection[int]
    ) -> list[dict[int, Tensor]] | None:
        if not layers:
            return None
        rows = {member: row for row, members in enumerate(groups) for member in members}
        return [
            {layer: states[layer][rows[index]].T.unflatten(1, self.vision_grid) for layer in layers}
            for index in range(len(rows))
        ]

    def _read(
        self, inputs: Sequence[LMMInputs], packed: PackedPrompts, embeds: Tensor, capture: CaptureSpec
    ) -> LMMStates:
        places = phrase_places(inputs, packed)
        tap = None
        if capture.attention:
            tap = self.tap(places.positions, places.phrase_ids, places.columns, places.num_phrases)
        positions = pad_sequence([part.plan.position_ids for part in packed.rows], batch_first=True)
        language_model = self.model.model.language_model
        # Right padding: no real token looks to its right. All ones, not None: see PrefixDecoder.feed.
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if packed.visible is None else packed.visible
        wanted = places.positions.to(embeds.device)
        with hidden_rows(language_model, wanted) if capture.hidden else nullcontext() as hidden:
            last = language_model(
                inputs_embeds=embeds,
                attention_mask=mask.to(embeds.device),
                position_ids=positions.to(embeds.device),
                use_cache=False,
                **({} if tap is None else {"row_tap": tap}),
            ).last_hidden_state
        return LMMStates(
            attention=None if tap is None else self._maps(tap, inputs, packed, places),
            hidden=None if hidden is None else split_hidden(hidden, places),
            logits=self._logits(last, inputs, packed) if capture.logits else None,
            logits_start=[item.prefix_length - 1 for item in inputs] if capture.logits else None,
        )

    def _maps(
        self, tap: RowTap, inputs: Sequence[LMMInputs], packed: PackedPrompts, places: PhraseRows
    ) -> list[Tensor]:
        stack = tap.finish()
        sent = [only_sent(rows, part.plan) for rows, part in zip(stack, packed.rows, strict=True)]
        return split_attention(torch.stack(sent), inputs, places)

    def _logits(self, last: Tensor, inputs: Sequence[LMMInputs], packed: PackedPrompts) -> list[Tensor]:
        states = answer_states(last, inputs, packed.groups, packed.token_index)
        head = self.model.get_output_embeddings()
        return list(head(torch.cat(states)).split([len(part) for part in states]))

    # Answers.

    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """See :class:`LMMAdapter`; without a cache."""
        if self._stock:
            return self.lmm.generate(sample, max_new_tokens=max_new_tokens)
        return self._answer(sample, None, max_new_tokens).text

    def generate_with_states(
        self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> Generation:
        """See :class:`LMMAdapter`; without a cache. Attention columns are patches in raster order."""
        if self._stock:
            return self.lmm.generate_with_states(sample, capture, max_new_tokens=max_new_tokens)
        generation = self._answer(sample, capture, max_new_tokens).generation
        assert generation is not None
        return generation

    def states_of_phrases(self, generation: Generation, phrases: Sequence[Phrase]) -> LMMStates:
        """See :class:`LMMAdapter`."""
        return self.lmm.states_of_phrases(generation, phrases)

    def _answer(self, sample: Sample, capture: CaptureSpec | None, max_new_tokens: int) -> Answer:
        was_training = self.training
        self.eval()
        try:
            return answer(self, sample, capture=capture, max_new_tokens=max_new_tokens)
        finally:
            self.train(was_training)
