"""A LLaVA that reads background and objects apart, so that what it made of a background can be kept."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.reading.layout import NUM_SEPARATORS, PromptLayout, only_sent
from flmm_detseg.cache.reading.packing import pack_prompts, phrase_places, share_images
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
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LMMAdapter
from flmm_detseg.lmms.capture.decoder_pass import states_of
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, Generation, LMMInputs, LMMStates, Phrase, Sample
from flmm_detseg.structures.partition import PatchPartition

PROJECTORS = ("shared", "separate")
TRAINABLE = ("separators", "projectors", "prefusion")


@MODELS.register_module()
class CachedLMM(LMMAdapter):
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
        tower: The vision tower, read in groups.
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
        super().__init__()
        lmm = MODELS.build(lmm) if isinstance(lmm, Mapping) else lmm
        self.tower = _check_readable(lmm)
        # In a tuple: submodules of it would have a second name.
        self._wrapped = (lmm,)
        self.model, self.facts, self.lora_groups = lmm.model, lmm.facts, lmm.lora_groups
        self.attention_layers, self.attention_heads = lmm.attention_layers, lmm.attention_heads
        self.feature_layer = self.tower.feature_layer
        self.partitioner = MODELS.build(partitioner) if isinstance(partitioner, Mapping) else partitioner
        limit = lmm.decoder_module.config.max_position_embeddings
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
        words = lmm.class_embeddings(["background", "objects"])
        self.separators = nn.Parameter(words.repeat_interleave(2, dim=0), requires_grad=False)
        if projectors not in PROJECTORS:
            raise ConfigError(f"`projectors` is {projectors!r}; allowed: {', '.join(PROJECTORS)}")
        own = projectors == "separate"
        self.background_projector = copy.deepcopy(lmm.part_module("projector")).float() if own else None
        self.object_projector = copy.deepcopy(lmm.part_module("projector")).float() if own else None
        self.prefusion = None if prefusion is None else prefusion.build(lmm)
        self._set_trainable(train, train_layers)
        self.frozen = lmm.frozen and not any(p.requires_grad for p in self.parameters())
        self.fingerprints = Fingerprints(self)
        self._stock = False

    @property
    def lmm(self) -> LMM:
        """The wrapped adapter."""
        return self._wrapped[0]

    @property
    def position_limit(self) -> int | None:
        """See :class:`LMMAdapter`."""
        return self.lmm.position_limit

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """See :class:`LMMAdapter`."""
        self.lmm.freeze_unread(vision_layers)

    @property
    def keeps_base(self) -> bool:
        """See :class:`LMMAdapter`: what was added beside the LLaVA may be trained, the LLaVA's own weights not."""
        changed = (
            name
            for name, parameter in self.named_parameters()
            if name.startswith("model.") and (parameter.requires_grad or name in self.checkpoint_buffers)
        )
        return not (self.merged or self.lmm.merged) and all(".lora_" in name for name in changed)

    @property
    def adapted(self) -> bool:
        """See :class:`LMMAdapter`: it reads images otherwise, trained or not."""
        return True

    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """See :class:`LMMAdapter`."""
        return self.lmm.class_embeddings(names)

    @property
    def trained_layout(self) -> dict[str, Any]:
        """See :class:`LMMAdapter`."""
        layout = self.layout
        # Settings of pre-fusion that no shape shows, such as heads.
        fused = {} if self.prefusion is None else {"prefusion": asdict(self.prefusion.settings)}
        return {
            "num_patches": layout.num_patches,
            "positions": layout.positions,
            "letterbox": layout.letterbox,
            "compressed": layout.compressed,
            "order": layout.order,
            "projectors": "shared" if self.background_projector is None else "separate",
            **fused,
        }

    def _set_trainable(self, train: Sequence[str], train_layers: int) -> None:
        """Switches gradients of the parts on and off; LoRA stays as it is."""
        if unknown := sorted(set(train) - set(TRAINABLE)):
            raise ConfigError(f"`train` names {unknown}; allowed: {', '.join(TRAINABLE)}")
        layers = self.lmm.decoder_module.layers
        if not 0 <= train_layers <= len(layers):
            raise ConfigError(
                f"`train_layers` is {train_layers}; the language model has {len(layers)} layers"
            )
        if "prefusion" in train and self.prefusion is None:
            raise ConfigError("`train` names 'prefusion', but there is none; give `prefusion` its settings")
        if self.layout.order == "image" and (self.prefusion is not None or "separators" in train):
            raise ConfigError("`order`='image' has neither separators nor pre-fusion; leave them out")
        self.separators.requires_grad_("separators" in train)
        own = [module for module in (self.background_projector, self.object_projector) if module is not None]
        for module in own:
            module.requires_grad_("projectors" in train)
        if "projectors" in train and not own:
            self.lmm.part_module("projector").requires_grad_(True)
        if self.prefusion is not None:
            self.prefusion.requires_grad_("prefusion" in train)
        for layer in layers[len(layers) - train_layers :]:
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode. Weights are about to change: fingerprints are
        taken anew.
        """
        # Not within another thread's request.
        with self.turn():
            if mode:
                self.fingerprints.invalidate()
            super().train(mode)
            if self.frozen:
                for part in self.children():
                    part.eval()
            return self

    @contextmanager
    def base_mode(self) -> Iterator[None]:
        """See :class:`LMMAdapter`: one group, the LLaVA's own order, its own projector."""
        with self.turn():
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
        """
        compressor = None if self.prefusion is None else self.prefusion.compressor
        return background if compressor is None else compressor(background.to(self.lmm.dtype), indices)

    def image_order_embeds(self, features: Tensor, part: PromptParts) -> Tensor:
        """Embeddings of a whole prompt in image order, ``[T, d]``.

        Args:
            features: Vision features of all patches, ``[N, D]``.
            part: The prompt.
        """
        objects = self._projected(self.object_projector, features[part.objects])
        tokens = torch.cat([self.background_tokens(features[part.background]), objects])
        order = torch.cat([part.background, part.objects]).argsort()
        return torch.cat([self.lmm.words(part.system_ids), tokens[order], self.lmm.words(part.text_ids)])

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
            sequences = packed.sequences(self._sequences(states[self.feature_layer], packed.rows, stored))
            places = phrase_places(inputs, packed)
            captured = self.lmm.read(sequences, places, capture)
            if captured.attention is not None:
                sent = [
                    only_sent(rows, part.plan)
                    for rows, part in zip(captured.attention, packed.rows, strict=True)
                ]
                captured = replace(captured, attention=torch.stack(sent))
            unembed = self.lmm.unembed if capture.logits else None
            return states_of(captured, sequences, places, inputs, unembed, vision)

    def isolated_features(self, item: LMMInputs) -> Tensor:
        """Vision features of all patches of one sample, each group for itself, ``[N, D]``."""
        return self.see([item], (self.feature_layer,))[self.feature_layer][0]

    def vision_states(self, item: LMMInputs, layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of the isolated tower as maps: per layer ``[D, rows, cols]``."""
        return self._vision_maps(self.see([item], layers), [[0]], layers)[0]

    def see(self, inputs: Sequence[LMMInputs], layers: Collection[int]) -> dict[int, Tensor]:
        """Hidden states of all patches, each group for itself: per layer ``[B, N, D]``."""
        groups = torch.stack([self.layout.groups(item.partition) for item in inputs])
        pixels = torch.stack([self.pixels(item) for item in inputs])
        return self.tower.states(pixels, groups.to(pixels.device), self.layout.num_groups, layers)

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


def _check_readable(lmm: LMMAdapter) -> IsolatedTower:
    """The tower of an LMM that can be read in groups.

    Raises:
        ConfigError: Another family, a sliding window, or Conv-LoRA in the vision tower.
    """
    tower = lmm.grouped_tower() if isinstance(lmm, LMM) else None
    if tower is None:
        raise ConfigError(
            f"the background cache reads LLaVA-1.5 (LlavaAdapter), not {type(lmm).__name__}: it needs one square view "
            "and a tower whose patches can be read in groups"
        )
    if lmm.facts.windows:
        raise ConfigError("the background cache needs a language model without a sliding window")
    if any(group.kind == "conv_lora" and group.part == "vision" for group in lmm.lora_groups.values()):
        raise ConfigError("Conv-LoRA in the vision tower looks over the borders of groups; use plain LoRA")
    return tower
