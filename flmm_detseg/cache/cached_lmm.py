"""A LLaVA that reads background and objects separately, so that what it computed for a background can be cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.reading.changed_patches import check_share, see_groups
from flmm_detseg.cache.reading.layout import only_sent
from flmm_detseg.cache.reading.packing import PackedPrompts, pack_prompts, phrase_places, share_images
from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.reading.prompt_parts import (
    PromptParts,
    partitioned,
)
from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.cache.regions.sources import Partitioner
from flmm_detseg.cache.serving.answer import Answer, answer
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LMMAdapter
from flmm_detseg.lmms.added.added_tokens import is_added
from flmm_detseg.lmms.capture.decoder_pass import states_of
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, Generation, LMMInputs, LMMStates, Phrase, Sample

TRAINABLE = ("separators", "projectors", "prefusion")


@MODELS.register_module()
class CachedLMM(GroupReader):
    """LLaVA-1.5 with isolated groups of patches, background first.

    A full :class:`LMMAdapter`: heads, trainer, evaluation and grounding use it like the LLaVA it wraps, whose
    parameters keep their names (``model.*``). Its outputs depend on the partition alone, never on whether something
    came from a cache; serving from one is :class:`~flmm_detseg.cache.serving.session.StreamSession`.

    Args:
        lmm: The LLaVA, or its config. Its LoRA, ``frozen`` and attention rows apply.
        partitioner: Finds the objects of a sample, or its config.
        positions: ``"packed"`` or ``"raster"``, see :class:`~flmm_detseg.cache.reading.layout.PromptLayout`.
        letterbox: ``"background"`` or ``"drop"``.
        projectors: ``"shared"``: the LLaVA's own. ``"separate"``: one each for background and objects, float32 copies
            of it to begin with.
        prefusion: Settings of pre-fusion, or their config; None for none.
        order: ``"image"`` only isolates the groups and leaves the sequence as it is, see :class:`PromptLayout`; then
            nothing can be cached.
        train: Trained besides the LLaVA's LoRA: any of ``"separators"``, ``"projectors"``, ``"prefusion"``.
        train_layers: Last decoder layers of the language model that are trained, too.
        stale_share: Least and largest share of changed background patches in training, see :func:`see_groups`; None: 0.

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
        super().__init__(lmm, partitioner, positions, letterbox, projectors, prefusion, order)
        self.stale_share = check_share(stale_share, self.layout)
        self._set_trainable(train, train_layers)
        self.frozen = self.lmm.frozen and not any(p.requires_grad for p in self.parameters())
        self._unmodified = False

    @property
    def keeps_base(self) -> bool:
        """See :class:`LMMAdapter`: what was added beside the LLaVA may be trained, the LLaVA's own weights not."""
        changed = (
            name
            for name, parameter in self.named_parameters()
            if name.startswith("model.") and (parameter.requires_grad or name in self.checkpoint_buffers)
        )
        return not (self.merged or self.lmm.merged) and all(
            ".lora_" in name or is_added(name) for name in changed
        )

    @property
    def adapted(self) -> bool:
        """See :class:`LMMAdapter`: images are read in groups, so that outputs differ even before training."""
        return True

    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """See :class:`LMMAdapter`."""
        return self.lmm.class_embeddings(names)

    def token_id(self, token: str) -> int | None:
        """See :class:`LMMAdapter`."""
        return self.lmm.token_id(token)

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
            **(super().trained_layout or {}),
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
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode. Weights may change now, so
        fingerprints are computed anew.
        """
        # Not within another thread's request.
        with self.exclusive():
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
        with self.exclusive():
            before, self._unmodified = self._unmodified, True
            try:
                with self.lmm.base_mode():
                    yield
            finally:
                self._unmodified = before

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

    def _with_regions(self, embeds: Tensor, packed: PackedPrompts, items: Sequence[LMMInputs]) -> Tensor:
        """As :meth:`with_regions`, of several texts a row."""
        pointing = {
            row: items[member]
            for row, samples in enumerate(packed.members)
            for member in samples
            if items[member].regions
        }
        if not pointing:
            return embeds
        read = dict(zip(pointing, self.lmm.region_maps(list(pointing.values())), strict=True))
        maps = [read.get(row, []) for row in range(len(packed.members))]
        return self.lmm.fill_regions(embeds, packed.members, packed.token_index, items, maps)

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
        if self._unmodified:
            return self.lmm.encode(inputs, capture, image_keys)
        if self.lmm.rows.attention == "eager":
            raise ConfigError(
                "rows `attention`='eager' compares with the unmodified LLaVA; CachedLMM needs 'rows'"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            keys = image_keys if self.lmm.share_prefix else None
            items = partitioned(inputs)
            members = share_images(items, keys)
            firsts = [items[samples[0]] for samples in members]
            longest = [max(len(items[member].input_ids) for member in samples) for samples in members]
            layers = (self.feature_layer, *capture.vision_layers)
            leads, states, stored = see_groups(self, firsts, layers, longest, self.stale_share)
            wanted = capture.vision_layers
            vision = self._vision_maps(states, members, wanted) if wanted else None
            if not capture.reads_text:
                return LMMStates(vision=vision)
            packed = pack_prompts(self.layout, leads, items, members)
            embeds = self._sequences(states[self.feature_layer], packed.rows, stored)
            sequences = packed.sequences(self._with_regions(embeds, packed, items))
            places = phrase_places(items, packed)
            captured = self.lmm.read(sequences, places, capture)
            if captured.attention is not None:
                sent = [
                    only_sent(rows, part.plan)
                    for rows, part in zip(captured.attention, packed.rows, strict=True)
                ]
                captured = replace(captured, attention=torch.stack(sent))
            return states_of(captured, sequences, places, items, capture, self.lmm.unembed, vision)

    # Answers.

    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """See :class:`LMMAdapter`; without a cache."""
        if self._unmodified:
            return self.lmm.generate(sample, max_new_tokens=max_new_tokens)
        return self._answer(sample, None, max_new_tokens).text

    def generate_with_states(
        self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> Generation:
        """See :class:`LMMAdapter`; without a cache. Attention columns are patches in raster order."""
        if self._unmodified:
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
