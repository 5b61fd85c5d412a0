"""The engine: one model of any family, one forward pass, and only what was asked for is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from threading import get_ident
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from flmm_detseg.compat.transformers5 import keep_ties
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.added.added_tokens import AddedTokens, added_tokens_off, grow
from flmm_detseg.lmms.added.lmm_part import LMMPart, build_parts, parts_off
from flmm_detseg.lmms.added.projector_part import Shown, projecting, projectors
from flmm_detseg.lmms.added.slot_filler import SlotFiller
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.lmms.capture.decoder import AnswerRows, PrefixDecoder
from flmm_detseg.lmms.capture.decoder_pass import Captured, Sequences, image_blocks, read, states_of
from flmm_detseg.lmms.capture.greedy_answer import GreedyAnswer
from flmm_detseg.lmms.capture.packing import (
    PhraseRows,
    distinct_images,
    image_columns,
    pack,
    phrase_entries,
    phrase_rows,
)
from flmm_detseg.lmms.capture.per_sample import attention_maps
from flmm_detseg.lmms.capture.row_tap import ROW_TAP, RowSettings, RowTap
from flmm_detseg.lmms.capture.token_rules import (
    add_end_id,
    answer_room,
    end_ids,
    greedy_model,
    warn_if_cut,
)
from flmm_detseg.lmms.capture.tower import tower_states
from flmm_detseg.lmms.family import Family, Features
from flmm_detseg.lmms.lora.groups import add_lora, lora_groups
from flmm_detseg.lmms.lora.layers import lora_off, recompute_contexts
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower, check_vision_layers
from flmm_detseg.lmms.precision import float32_buffers, restore_buffers
from flmm_detseg.lmms.processors import DESCRIPTION_PROMPT, LMMProcessor, ProcessorSettings
from flmm_detseg.lmms.weights.facts import check_config, check_facts, default_max_length, position_limit
from flmm_detseg.lmms.weights.loading import load_model, torch_dtype
from flmm_detseg.ops.rows import merge_rows
from flmm_detseg.structures import (
    RGB,
    CaptureSpec,
    Generation,
    HiddenRows,
    ImageInputs,
    LMMInputs,
    LMMStates,
    Phrase,
    Sample,
)
from flmm_detseg.utils.values import FieldError, check_text


class Seen(NamedTuple):
    """Tokens, features and maps of the images of a sample.

    Attributes:
        tokens: Of all of them, ``[num_tokens, d]``.
        features: Per image.
        maps: Per image its vision maps ``[D, rows, cols]`` by layer.
    """

    tokens: Tensor
    features: list[Features]
    maps: list[dict[int, Tensor]]


class LMM(LMMAdapter):
    """A model of one family of transformers'. What families differ in is in :class:`~flmm_detseg.lmms.family.Family`.

    Args:
        model: The family's ``...ForConditionalGeneration``. Its language model's attention function is
            exchanged for :mod:`flmm_detseg.lmms.capture.row_tap`, which is sdpa outside of :meth:`encode`.
        processor: The family's processor; None where only shapes matter (then :meth:`prepare` and
            :meth:`generate` raise).
        merge: Merge of the attention rows of a phrase's tokens, ``"mean"`` or ``"max"``.
        layers: Decoder layers whose attention is read, None for all, or for those that the family names
            (:attr:`LMMFacts.row_layers`).
        heads: Heads whose attention is read, None for all; ``"top:N"`` for the best of ``ranking``.
        attention: ``"rows"`` or ``"eager"`` (parity checks).
        ranking: File of a ranking of heads, see :class:`~flmm_detseg.lmms.capture.row_tap.RowSettings`.
        frozen: No parameter of the LMM gets a gradient, it stays in eval mode, :meth:`encode` runs without
            autograd. False leaves ``requires_grad`` as it is.
        share_prefix: Samples with equal images share one prefix: what their prompts begin with alike. Also with
            a trainable LMM; the pass stays differentiable. Not of an LMM with layers that read their neighbours in
            the row (:attr:`LMMFacts.rowless_layers`): each of its samples runs alone.
        lora: LoRA groups, see :func:`~flmm_detseg.lmms.lora.groups.lora_groups`. The LMM's own weights are frozen
            then, whatever ``frozen`` says, and :meth:`encode` runs with autograd.
        added_tokens: Tokens that the LMM does not have, such as ``["[SEG]"]``, see
            :class:`~flmm_detseg.lmms.added.added_tokens.AddedTokens`; a list of texts, or its fields. Their rows are
            trained, also where the LMM is ``frozen``, so that :meth:`encode` runs with autograd. In
            :meth:`base_mode` they have no logits.
        parts: Modules added to the LMM by name, each ``dict(type=..., ...)``: one that fills places of the prompt with
            regions (``RegionTokens``, ``SpatialSampler``), or computes in the projector's place (``OwnProjector``, also
            one for each modality of images, or ``RoutedProjector``, several that are mixed). Trained like added tokens,
            off in :meth:`base_mode`, saved as ``parts.NAME``.
        gradient_checkpointing: Blocks of tower and language model keep their input only and are repeated in the
            backward pass: less memory, about a third more time, the same gradients. Only in training mode.

    Attributes:
        family: What is particular to the model's family.

    Raises:
        ConfigError: Row settings that do not fit the model, facts of the model that disagree (see
            :mod:`flmm_detseg.lmms.weights.facts`), or ``gradient_checkpointing`` of an LMM that has no gradients.
    """

    # What `dict(type="LlavaAdapter", pretrained=...)` means in a config, and with `config=...`.
    BUILDERS: ClassVar[tuple[str, ...]] = ("from_pretrained", "from_config")
    family_class: ClassVar[type[Family]]

    def __init__(
        self,
        model: PreTrainedModel,
        processor: LMMProcessor | None,
        *,
        merge: str = "mean",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | str | None = None,
        attention: str = "rows",
        ranking: str | None = None,
        frozen: bool = True,
        share_prefix: bool = True,
        lora: Mapping[str, Mapping[str, Any]] | None = None,
        added_tokens: Sequence[str] | Mapping[str, Any] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.family = self.family_class(model.config)
        self.facts = self.family.facts
        if layers is None and not isinstance(heads, str):
            layers = self.facts.row_layers
        self.rows = RowSettings(merge, layers, heads, attention, ranking)
        self.attention_pairs = self.rows.resolve(
            self.facts.num_layers, self.facts.num_heads, self.facts.rowless_layers
        )
        self.ranked_heads = self.rows.by_ranking
        check_facts(self.family, model, processor)
        if processor is not None:
            if (turn_end := processor.template.turn_end) is not None:
                add_end_id(model, processor.tokenizer.convert_tokens_to_ids(turn_end))
            processor.add_end_tokens(end_ids(model))
        self.model = model
        self.processor = processor
        # Without added tokens, of base mode; and the thread that is in it.
        self._own_processor = copy.copy(processor)
        self._base_thread: int | None = None
        length = 0 if processor is None else processor.settings.max_length
        self._position_limit = position_limit(self.decoder_module, length)
        self.frozen = frozen
        self.share_prefix = share_prefix
        model.set_attn_implementation({"text_config": ROW_TAP})
        if frozen:
            model.requires_grad_(False)
            model.eval()
        self.lora_groups = {}
        if lora:
            add_lora(self, lora_groups(lora))
        self.trains_base = not (frozen or lora)
        self._add_tokens(AddedTokens.from_config(added_tokens))
        self._add_parts(parts)
        if gradient_checkpointing:
            self._checkpoint_gradients()

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        *,
        dtype: str = "float32",
        prompt_template: str = "vicuna",
        description_prompt: str = DESCRIPTION_PROMPT,
        rows: dict[str, Any] | None = None,
        max_length: int | None = None,
        frozen: bool = True,
        share_prefix: bool = True,
        lora: Mapping[str, Mapping[str, Any]] | None = None,
        added_tokens: Sequence[str] | Mapping[str, Any] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Builds the adapter from a folder in hub layout, or from a model name on the hub.

        Args:
            pretrained: Folder with config, safetensors, tokenizer and preprocessor config; or a hub name.
            dtype: Of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            prompt_template: A name of :data:`~flmm_detseg.lmms.chat.TEMPLATES`; families with a template of their
                own do not read it.
            description_prompt: Question for samples without a prompt.
            rows: Settings of the attention stack: any of ``merge``, ``layers``, ``heads``, ``attention``, ``ranking``.
            max_length: Longest sequence in tokens; None for what the language model was built for.
            frozen: See the class.
            share_prefix: See the class.
            lora: See the class, e.g. ``dict(vision=dict(r=8), llm=dict(target="all-linear"))``.
            added_tokens: See the class.
            parts: See the class.
            gradient_checkpointing: See the class.

        Returns:
            The adapter, with a processor.

        Raises:
            ConfigError: No such folder, a file is missing, or an argument cannot be used.
            CheckpointError: The weights are absent, damaged, or do not fit the config.
        """
        settings = RowSettings.from_dict(rows)
        model = load_model(cls.family_class, pretrained, torch_dtype(dtype))
        family = cls.family_class(model.config)
        processor = family.load_processor(
            pretrained,
            ProcessorSettings(
                prompt_template=prompt_template,
                description_prompt=description_prompt,
                max_length=max_length or default_max_length(family.decoder(model)),
            ),
        )
        lmm = cls(
            model,
            processor,
            **asdict(settings),
            frozen=frozen,
            share_prefix=share_prefix,
            lora=lora,
            added_tokens=added_tokens,
            parts=parts,
            gradient_checkpointing=gradient_checkpointing,
        )
        settings.warn_of_other(pretrained)
        return lmm

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any] | PretrainedConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | str | None = None,
        dtype: str = "float32",
        prompt_template: str = "vicuna",
        description_prompt: str = DESCRIPTION_PROMPT,
        rows: dict[str, Any] | None = None,
        max_length: int | None = None,
        frozen: bool = True,
        share_prefix: bool = True,
        lora: Mapping[str, Mapping[str, Any]] | None = None,
        added_tokens: Sequence[str] | Mapping[str, Any] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Builds the adapter with random weights, on the default device (``with torch.device("meta")``:
        shapes only).

        Args:
            config: Model config or its fields.
            tokenizer: Fast tokenizer, or the folder or hub name of one (of families that use transformers' own
                processor: that processor); None for an adapter that only has shapes.
            dtype: Of the weights.
            prompt_template: See :meth:`from_pretrained`, as for all that follow.
            description_prompt: Question for samples without a prompt.
            rows: Settings of the attention stack.
            max_length: Longest sequence in tokens.
            frozen: See the class.
            share_prefix: See the class.
            lora: See the class, e.g. ``dict(vision=dict(r=8), llm=dict(target="all-linear"))``.
            added_tokens: See the class.
            parts: See the class.
            gradient_checkpointing: See the class.

        Returns:
            The adapter; with a processor if a tokenizer was given.

        Raises:
            ConfigError: An argument cannot be used.
        """
        settings = RowSettings.from_dict(rows)
        if isinstance(config, dict):
            fields = config
            config = cls.family_class.config_class.from_dict(dict(fields))
            keep_ties(config, fields)
        family = cls.family_class(config)
        check_config(family, "the config")
        model = cls.family_class.model_class(config)
        frequencies = float32_buffers(model)
        model.to(torch_dtype(dtype))
        restore_buffers(model, frequencies)
        processor = None
        if tokenizer is not None:
            processor = family.build_processor(
                tokenizer,
                ProcessorSettings(
                    prompt_template=prompt_template,
                    description_prompt=description_prompt,
                    max_length=max_length or default_max_length(family.decoder(model)),
                ),
            )
        return cls(
            model,
            processor,
            **asdict(settings),
            frozen=frozen,
            share_prefix=share_prefix,
            lora=lora,
            added_tokens=added_tokens,
            parts=parts,
            gradient_checkpointing=gradient_checkpointing,
        )

    def _add_tokens(self, added: AddedTokens | None) -> None:
        self.added_tokens = added
        if added is None:
            return
        rows = self.model.get_input_embeddings().weight.shape[0]
        word_ids: list[int] = []
        if self.processor is None:
            if added.words:
                raise ConfigError("`added_tokens.words` needs a tokenizer; the adapter was built without one")
            known, ids = rows, list(range(rows, rows + len(added.tokens)))
        else:
            known = len(self.processor.tokenizer)
            word_ids = self.processor.known_tokens(added.words)
            ids = self.processor.add_tokens(added.tokens)
        grow(self.model, added, ids, known, word_ids)
        self.frozen = False
        self.trains_base |= added.train == "tables"

    def _add_parts(self, config: Mapping[str, Mapping[str, Any]] | None) -> None:
        found = build_parts(config, self.model, self.facts)
        adapted = [name for name, group in self.lora_groups.items() if group.part == "projector"]
        own = projectors(found)
        if adapted and own:
            raise ConfigError(
                f"LoRA group {adapted[0]!r} adapts the projector, in whose place {type(own[0]).__name__} computes; "
                "leave one of them out"
            )
        self._slot_id: int | None = None
        if not found:
            return
        self.parts = nn.ModuleDict(found)
        self.frozen = False
        if (filler := self._filler) is not None and self.processor is not None:
            name = next(name for name, part in found.items() if part is filler)
            self._slot_id = self._slot_token(self.processor, filler.token, f"lmm.parts.{name}.token")

    def _slot_token(self, processor: LMMProcessor, token: str, where: str) -> int:
        """The id of what stands for a region, which the tokenizer gets unless it is one of the added tokens."""
        tokenizer = processor.tokenizer
        if self.added_tokens is not None and token in self.added_tokens.tokens:
            return int(tokenizer.convert_tokens_to_ids(token))
        taken = (
            "the tokenizer has already"
            if token in tokenizer.get_vocab()
            else "the chat template is written with"
            if token in processor.prompt("")
            else "is part of a control word, or has one"
            if any(token in word or word in token for word in processor.control_words)
            else None
        )
        if taken is not None:
            raise ConfigError(
                f"`{where}` is {token!r}, which {taken}; choose another one, such as '<region>'"
            )
        return processor.add_tokens([token])[0]

    @property
    def added_parts(self) -> Mapping[str, LMMPart]:
        """See :class:`LMMAdapter`."""
        if not hasattr(self, "parts"):
            return {}
        parts: Iterable[tuple[str, Any]] = self.parts.items()  # a ModuleDict knows modules only
        return dict(parts)

    @property
    def _filler(self) -> SlotFiller | None:
        return next((part for part in self.added_parts.values() if isinstance(part, SlotFiller)), None)

    def _checkpoint_gradients(self) -> None:
        if self.frozen:
            raise ConfigError(
                "`gradient_checkpointing` saves memory of a backward pass, but the LMM is frozen and has none; leave "
                "it out, or add `lora`"
            )
        self.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": partial(recompute_contexts, self.model)}
        )

    # What the model consists of.

    @property
    def position_limit(self) -> int | None:
        """See :class:`LMMAdapter`."""
        return self._position_limit

    @property
    def decoder_module(self) -> PreTrainedModel:
        """The decoder of the language model, a module of transformers (:meth:`Family.decoder` of this model)."""
        return self.family.decoder(self.model)

    @property
    def unembed(self) -> nn.Module:
        """From last states to logits."""
        return self.model.get_output_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return end_ids(self.model)

    def part_module(self, part: str) -> nn.Module:
        """A part of the model that is in one piece: ``"vision"``, ``"llm"`` or ``"projector"``."""
        (path,) = self.facts.parts[part]
        return self.model.get_submodule(path)

    def part_config(self, part: str) -> PretrainedConfig:
        """The config of ``"vision"`` or ``"llm"``."""
        config = self.model.config
        return config.vision_config if part == "vision" else config.get_text_config()

    def words(self, input_ids: Tensor) -> Tensor:
        """Input embeddings of tokens; those of places of regions are any word's, see :meth:`fill_regions`."""
        if self._slot_id is not None:
            input_ids = input_ids.masked_fill(input_ids == self._slot_id, 0)  # the tables may not have it
        return self.model.get_input_embeddings()(input_ids.to(self.device))

    def grouped_tower(self) -> IsolatedTower | None:
        """The tower as the background cache reads it, see :meth:`Family.grouped_tower`."""
        return self.family.grouped_tower(self.model)

    def prefix_decoder(
        self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None
    ) -> PrefixDecoder:
        """:class:`PrefixDecoder`: the language model step by step, after stored keys and values or from the start."""
        return PrefixDecoder(
            self.decoder_module,
            self.unembed,
            keys,
            values,
            windows=self.facts.windows,
            axes=self.facts.axes,
            cache=self.family.new_cache(self.model),
        )

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """See :class:`LMMAdapter`."""
        for unread in self.family.unread(self.model, vision_layers):
            unread.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    # One pass.

    def prepare(self, sample: Sample) -> LMMInputs:
        """See :class:`LMMAdapter`; regions need a part that reads them, and a place in the text each."""
        return self.with_parts(self._processor()(sample), sample)

    def _question(self, sample: Sample) -> LMMInputs:
        return self.with_parts(self._processor().question(sample), sample)

    def with_parts(self, item: LMMInputs, sample: Sample) -> LMMInputs:
        """Adds what only the parts of an LMM read of a sample.

        Args:
            item: The sample as its processor prepared it.
            sample: Its regions and modalities.

        Returns:
            ``item`` with both.

        Raises:
            ConfigError: The sample points at regions, and nothing reads them.
            DataError: Regions and their places in the text differ in number, a region lies outside of its image, or no
                part reads a modality.
        """
        return self._with_regions(self._with_modalities(item, sample), sample)

    def _with_modalities(self, item: LMMInputs, sample: Sample) -> LMMInputs:
        task = sample.task if any(sample.task in own.tasks for own in projectors(self.added_parts)) else ""
        if not (sample.modalities or task):
            return item
        given, known = sample.modalities or (RGB,) * len(item.images), self._known_modalities
        if len(given) != len(item.images):
            raise DataError(
                f"{sample.record_id}: {len(given)} modalities for {len(item.images)} images; give one each, or none"
            )
        if known is not None and (unknown := sorted(set(given) - known)):
            raise DataError(
                f"{sample.record_id}: no part of this LMM reads {', '.join(map(repr, unknown))} images; its projectors "
                f"are for {', '.join(sorted(known))}"
            )
        images = zip(item.images, given, strict=True)
        return replace(item, images=tuple(replace(image, modality=name, task=task) for image, name in images))

    def needs_parts(self, sample: Sample) -> bool:
        """See :class:`LMMAdapter`."""
        own = projectors(self.added_parts)
        return super().needs_parts(sample) or any(
            not part.unread_modalities.isdisjoint(sample.modalities) for part in own
        )

    @property
    def _known_modalities(self) -> frozenset[str] | None:
        """Allowed modalities of images, for an LMM that distinguishes them; None: anything, they are read alike."""
        named = [part.modalities for part in projectors(self.added_parts)]
        given = [names for names in named if names is not None]
        return frozenset({RGB}.union(*given)) if given and len(given) == len(named) else None

    def _with_regions(self, item: LMMInputs, sample: Sample) -> LMMInputs:
        filler = self._filler
        if self.in_base_mode:
            if sample.regions:
                raise _unread_regions(sample.record_id)
            return item
        if filler is None:
            if sample.regions:
                raise ConfigError(
                    f"{sample.record_id} points at regions, and this LMM has no part that reads them; add one: "
                    "lmm=dict(..., parts=dict(regions=dict(type='RegionTokens')))"
                )
            return item
        assert self._slot_id is not None  # set wherever there are a filler and a tokenizer
        slots = (item.input_ids == self._slot_id).nonzero().flatten()
        if len(slots) != len(sample.regions):
            raise DataError(
                f"{sample.record_id}: {len(slots)} times {filler.token} in the text, but {len(sample.regions)} "
                "regions; each region needs its place, in order"
            )
        if not sample.regions:
            return item
        sizes = [image.shape[:2] for image in (sample.image, *sample.more_images)]
        for index, region in enumerate(sample.regions):
            try:
                region.check(sizes)
            except DataError as error:
                raise DataError(f"{sample.record_id}, region {index}: {error}") from error
        regions = tuple(
            (region, filler.locate(region, item.images[region.image].grid)) for region in sample.regions
        )
        return replace(item, regions=regions, slots=slots)

    def _processor(self) -> LMMProcessor:
        """The untouched one in base mode: there, the text and the id of an added token are what they were."""
        if self.in_base_mode and self._own_processor is not None:
            return self._own_processor
        if self.processor is None:
            raise ConfigError(
                "the adapter was built without a tokenizer: it cannot prepare samples; pass `tokenizer`"
            )
        return self.processor

    def encode(
        self,
        inputs: Sequence[LMMInputs],
        capture: CaptureSpec,
        image_keys: Sequence[str | None] | None = None,
    ) -> LMMStates:
        """See :class:`LMMAdapter`."""
        assert len(inputs) > 0
        assert image_keys is None or len(image_keys) == len(inputs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            owners = distinct_images(inputs, image_keys)
            seen, vision = self.see(inputs, owners, capture.vision_layers)
            if not capture.reads_text:
                return LMMStates(vision=vision)
            sequences = self._sequences(inputs, owners, seen, share=self.share_prefix)
            columns = [image_columns(inputs[members[0]]) for members in sequences.members]
            places = phrase_rows(inputs, sequences.members, sequences.token_index, columns)
            captured = self.read(sequences, places, capture)
            return states_of(captured, sequences, places, inputs, capture, self.unembed, vision)

    def read(self, sequences: Sequences, places: PhraseRows, capture: CaptureSpec) -> Captured:
        """From sequences to states: the forward pass of the language model, also for sequences that a caller made.

        Args:
            sequences: What it reads.
            places: Phrase tokens among them.
            capture: What to keep.

        Returns:
            What was kept of the pass, for :func:`~flmm_detseg.lmms.capture.decoder_pass.states_of`.

        Raises:
            ConfigError: ``attention="eager"`` together with gradient checkpointing, or no layer of ``capture``.
        """
        eager = self.rows.attention == "eager"
        if eager and torch.is_grad_enabled() and self.model.is_gradient_checkpointing:
            raise ConfigError(
                "rows `attention`='eager' is for parity checks: not with gradient checkpointing"
            )
        tap = self.tap(places) if capture.attention else None
        with self._text_attention("eager" if eager else ROW_TAP):
            return read(
                self.decoder_module,
                sequences,
                places,
                capture,
                tap=tap,
                windows=self.facts.windows,
                eager=eager,
            )

    def tap(self, places: PhraseRows) -> RowTap:
        """A collector of attention rows with the adapter's settings."""
        heads: dict[int, list[int] | None] = {}
        for layer, head in self.attention_pairs:
            if self.rows.heads is None:
                heads[layer] = None
            else:
                heads[layer] = [*(heads.get(layer) or ()), head]
        return RowTap(
            places.positions.to(self.device),
            places.phrase_ids.to(self.device),
            places.columns.to(self.device),
            places.num_phrases,
            heads=heads,
            merge=self.rows.merge,
        )

    def greedy_answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: LMMInputs,
        columns: Tensor,
        capture: CaptureSpec,
        next_position: int,
        max_new_tokens: int,
    ) -> GreedyAnswer:
        """An answer to come, after a prompt that the caller runs.

        Args:
            tokenizer: From tokens to text.
            question: Image and prompt.
            columns: Places of the patches in the sequence that runs, int64 ``[N]``.
            capture: What to keep of each token.
            next_position: Rotary position of the first token.
            max_new_tokens: Longest answer.

        Returns:
            Nothing is chosen yet: its ``run`` does.

        Raises:
            ConfigError: ``max_new_tokens`` is below 1, or the language model has no layer whose hidden rows are to be
                kept.
            DataError: The prompt leaves no room for an answer.
        """
        one = torch.zeros(1, 1, dtype=torch.int64)
        query = PhraseRows(one, one, columns[None], 1, [(0, slice(0, 1), slice(0, 1))], [one[0]])
        make_tap = (lambda: self.tap(query)) if capture.attention else None
        return GreedyAnswer(
            self.model,
            tokenizer,
            question,
            AnswerRows(make_tap, capture.hidden_layers(self.num_layers), capture.answer),
            next_position,
            self.position_limit,
            max_new_tokens,
        )

    def see(
        self, inputs: Sequence[LMMInputs], owners: Sequence[int], layers: tuple[int, ...]
    ) -> tuple[dict[int, Seen], list[dict[int, Tensor]] | None]:
        """From images to tokens: runs tower and projector.

        Args:
            inputs: Prepared samples.
            owners: Per sample the first one with the same images.
            layers: Hidden states of the tower that are wanted.

        Returns:
            Per sample with images of its own what :class:`Seen` holds; per sample the wanted maps, None where none are.

        Raises:
            ConfigError: The tower has no such hidden state.
        """
        check_vision_layers(layers, self.facts.vision.num_layers)
        filler = self._region_reader(inputs)
        wanted = tuple(sorted({*layers, *(filler.layers if filler else ())}))
        firsts = sorted(set(owners))
        images = [self._on_device(image) for index in firsts for image in inputs[index].images]
        tokens, features, maps = self._see_images(images, wanted)
        seen, shown, start = {}, {}, 0
        for index in firsts:
            end = start + len(inputs[index].images)
            seen[index] = Seen(torch.cat(tokens[start:end]), features[start:end], maps[start:end])
            shown[index] = {layer: maps[start][layer] for layer in layers}
            start = end
        return seen, [shown[owner] for owner in owners] if layers else None

    def _see_images(
        self, images: Sequence[ImageInputs], layers: tuple[int, ...]
    ) -> tuple[list[Tensor], list[Features], list[dict[int, Tensor]]]:
        """Runs tower and projector, once for each modality (and task) that is projected in its own way.

        Returns:
            Per image its tokens, features, and maps by layer.
        """
        found: dict[int, tuple[Tensor, Features, dict[int, Tensor]]] = {}
        for part in projectors(self.added_parts):
            if part.active:
                part.begin_pass()
        for shown, places in self._shown(images).items():
            group = [images[place] for place in places]
            alone = self.exclusive() if self.family.one_at_a_time else nullcontext()
            # Some families project inside the tower, so that both belong to the modality.
            with projecting(shown), alone:
                with tower_states(self.family.tower_blocks(self.model), layers) as states:
                    features = self.family.features(self.model, group)
                tokens = self.family.project(self.model, features, group)
            maps = {layer: self.family.view_maps(states[layer], group) for layer in layers}
            for index, place in enumerate(places):
                own = {layer: maps[layer][index] for layer in layers}
                found[place] = tokens[index], features[index], own
        rows = [found[place] for place in range(len(images))]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    def _shown(self, images: Sequence[ImageInputs]) -> dict[Shown, list[int]]:
        """Places of images that are projected alike; all of them under one key for an LMM that reads them alike."""
        apart = any(part.modalities and part.active for part in projectors(self.added_parts))
        groups: dict[Shown, list[int]] = {}
        for place, image in enumerate(images):
            shown = Shown(image.modality, image.task) if apart else Shown()
            groups.setdefault(shown, []).append(place)
        return groups

    def _region_reader(self, inputs: Sequence[LMMInputs]) -> SlotFiller | None:
        """The part that reads the regions of these samples; None where they have none.

        Raises:
            ConfigError: They have, and the parts are off.
        """
        pointing = next((item for item in inputs if item.regions), None)
        if pointing is None:
            return None
        filler = self._filler
        if filler is None or not filler.active:
            raise _unread_regions(pointing.record_id)
        return filler

    def region_maps(self, inputs: Sequence[LMMInputs]) -> list[list[dict[int, Tensor]]]:
        """What regions are read from, for whoever makes sequences of its own: the tower runs over whole images.

        Args:
            inputs: Prepared samples.

        Returns:
            Per sample and image its maps ``[D, rows, cols]`` by layer.
        """
        seen, _ = self.see(inputs, range(len(inputs)), ())
        return [seen[index].maps for index in range(len(inputs))]

    def fill_regions(
        self,
        embeds: Tensor,
        members: Sequence[Sequence[int]],
        token_index: Sequence[Tensor],
        inputs: Sequence[LMMInputs],
        maps: Sequence[Sequence[Mapping[int, Tensor]]],
    ) -> Tensor:
        """Writes embeddings of regions into their places.

        Args:
            embeds: ``[R, T, d]``.
            members: Per row the samples in it.
            token_index: Per sample the place of each of its tokens in the row, int64 ``[T_i]``.
            inputs: The samples.
            maps: Per row those of :meth:`region_maps`; empty where no sample of it points.

        Returns:
            ``[R, T, d]``; ``embeds`` itself where no sample points.

        Raises:
            ConfigError: A sample points, and nothing reads its regions (base mode).
        """
        filler = self._region_reader(inputs)
        if filler is None:
            return embeds
        read, located, places = [], [], torch.zeros(embeds.shape[:2], dtype=torch.bool)
        for row, (samples, found) in enumerate(zip(members, maps, strict=True)):
            for member in samples:
                item = inputs[member]
                if item.regions:
                    places[row, token_index[member][item.slots]] = True
                read += [found[region.image] for region, _ in item.regions]
                located += [where.to(self.device) for _, where in item.regions]
        filled = filler.fill(read, located)
        return embeds.masked_scatter(places.to(self.device)[..., None], filled.to(embeds))

    def _on_device(self, image: ImageInputs) -> ImageInputs:
        further = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in image.further.items()
        }
        return replace(image, pixel_values=image.pixel_values.to(self.device, self.dtype), further=further)

    def _sequences(
        self,
        inputs: Sequence[LMMInputs],
        owners: Sequence[int],
        seen: Mapping[int, Seen],
        *,
        share: bool,
    ) -> Sequences:
        batch = pack(inputs, owners if share and not self.facts.rowless_layers else None)
        rows = [seen[owners[samples[0]]] for samples in batch.members]
        image_mask = batch.image_mask.to(self.device)
        embeds = self.words(batch.input_ids)
        embeds = embeds.masked_scatter(
            image_mask[..., None], torch.cat([row.tokens for row in rows]).to(embeds)
        )
        embeds = self.fill_regions(
            embeds, batch.members, batch.token_index, inputs, [row.maps for row in rows]
        )
        features = [found for row in rows for found in row.features]
        return Sequences(
            embeds,
            positions=batch.position_ids,
            visible=batch.visible,
            blocks=image_blocks(batch.image_mask) if self.facts.image_attention == "both" else None,
            arguments=self.family.decoder_arguments(features, image_mask),
            members=batch.members,
            token_index=batch.token_index,
        )

    # Answers.

    @torch.no_grad()
    def generate_with_states(
        self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> Generation:
        """See :class:`LMMAdapter`. The rows come from the row tap whatever ``attention`` says: eager blocks would
        answer in other bits.
        """
        return self._answers([self._question(sample)], [0], capture, max_new_tokens)[0]

    @torch.no_grad()
    def generate_together(
        self, samples: Sequence[Sample], capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> list[Generation]:
        """See :class:`LMMAdapter`: samples with equal ``image_id`` and pixels share what the tower saw, and their
        answers grow in step. Prompts run one by one, so the first tokens are those of single calls, bit for bit.
        Attention rows, and LMMs that keep more than keys and values, need single calls.
        """
        if capture.attention or self.facts.rowless_layers or len(samples) < 2:
            return super().generate_together(samples, capture, max_new_tokens=max_new_tokens)
        questions = [self._question(sample) for sample in samples]
        owners = distinct_images(questions, [sample.image_id for sample in samples])
        return self._answers(questions, owners, capture, max_new_tokens)

    def _answers(
        self,
        questions: Sequence[LMMInputs],
        owners: Sequence[int],
        capture: CaptureSpec,
        max_new_tokens: int,
    ) -> list[Generation]:
        tokenizer = self._processor().tokenizer
        answers = [
            self.greedy_answer(
                tokenizer,
                question,
                image_columns(question),
                capture,
                question.next_position,
                max_new_tokens,
            )
            for question in questions
        ]
        with self._eval_mode(), self._text_attention(ROW_TAP):
            # Each image by itself: the tower rounds several otherwise.
            seen = {
                owner: self.see([questions[owner]], [0], capture.vision_layers)
                for owner in sorted(set(owners))
            }
            begun = [
                self._read_prompt(question, seen[owner][0][0])
                for question, owner in zip(questions, owners, strict=True)
            ]
            decoders, states = zip(*begun, strict=True)
            decoder = decoders[0] if len(decoders) == 1 else PrefixDecoder.join(decoders)
            for _ in GreedyAnswer.run_together(answers, decoder, torch.cat(states)):
                pass
        maps = [seen[owner][1] for owner in owners]
        return [
            answer.generation(None if vision is None else vision[0])
            for answer, vision in zip(answers, maps, strict=True)
        ]

    def _read_prompt(self, question: LMMInputs, seen: Seen) -> tuple[PrefixDecoder, Tensor]:
        """A decoder after a prompt, and the last state ``[1, 1, d]``."""
        sequence = self._sequences([question], [0], {0: seen}, share=False)
        positions = sequence.positions
        if positions is None:
            positions = torch.arange(question.next_position)
        decoder = self.prefix_decoder()
        last = decoder.feed(sequence.embeds, positions, blocks=sequence.blocks, arguments=sequence.arguments)
        return decoder, last[:, -1:]

    def states_of_phrases(self, generation: Generation, phrases: Sequence[Phrase]) -> LMMStates:
        """See :class:`LMMAdapter`."""
        item = phrase_inputs(generation, phrases)
        tokens, ids = phrase_entries(item.phrase_tokens[:, item.prefix_length :], item.record_id)
        tokens, ids = tokens.to(self.device), ids.to(self.device)
        attention = hidden = None
        if generation.attention is not None:
            rows = generation.attention[None, :, tokens]
            merged = merge_rows(rows, ids[None], len(phrases), how=self.rows.merge)
            attention = [attention_maps(merged[0], item.grid)]
        if generation.hidden is not None:
            hidden = [HiddenRows(generation.hidden[:, tokens], ids, generation.hidden_layers)]
        vision = None if generation.vision is None else [generation.vision]
        answer = None if generation.answer_states is None else [generation.answer_states]
        log_probs = torch.stack([generation.log_probs, generation.best_log_probs], dim=1)
        likelihood = [log_probs.to(self.device)[tokens]]
        return LMMStates(
            attention=attention, hidden=hidden, vision=vision, answer=answer, likelihood=likelihood
        )

    @torch.no_grad()
    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """See :class:`LMMAdapter`."""
        processor = self._processor()
        item = self._question(sample)
        if item.regions or set(self._shown(item.images)) != {Shown()}:
            # Transformers' own loop reads words and one kind of image only.
            return self.generate_with_states(sample, CaptureSpec(), max_new_tokens=max_new_tokens).text
        room = answer_room(item.next_position, self.position_limit, max_new_tokens, sample.record_id)
        input_ids = item.input_ids[None].to(self.device)
        # With several axes, transformers keeps what it counts positions by in the model, for one answer at a time.
        alone = self.family.one_at_a_time or self.facts.axes > 1
        with self._eval_mode(), self.exclusive() if alone else nullcontext():
            output = greedy_model(self.model, room).generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                tokenizer=processor.tokenizer,
                **self.own_inputs(item),
            )
        answer = output[0, input_ids.shape[1] :]
        warn_if_cut(len(answer), int(answer[-1]), self.end_ids, room, max_new_tokens)
        return processor.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """A sample's images as the model's own ``forward`` and ``generate`` want them, on its device."""
        own = self.family.own_inputs(item)
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in own.items()
        }

    # Switches.

    @contextmanager
    def _text_attention(self, name: str) -> Iterator[None]:
        """Makes sure of the language model's attention function, and puts it back."""
        before = self.model.config.text_config._attn_implementation
        if before == name:
            yield
            return
        self.model.set_attn_implementation({"text_config": name})
        try:
            yield
        finally:
            self.model.set_attn_implementation({"text_config": before})

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextmanager
    def base_mode(self) -> Iterator[None]:
        """See :class:`LMMAdapter`; the language model runs transformers' own sdpa function, in eval mode."""
        with self.exclusive(), self._text_attention("sdpa"), self._eval_mode(), lora_off(self.model):
            with added_tokens_off(self.model), parts_off(self.added_parts):
                before, self._base_thread = self._base_thread, get_ident()
                try:
                    yield
                finally:
                    self._base_thread = before

    @property
    def in_base_mode(self) -> bool:
        """Whether this thread is in :meth:`base_mode`; others, which wait for it, prepare samples meanwhile."""
        return self._base_thread == get_ident()

    def token_id(self, token: str) -> int | None:
        """See :class:`LMMAdapter`."""
        added = () if self.added_tokens is None else self.added_tokens.tokens
        if self.processor is None:
            return dict(zip(added, self.added_ids, strict=True)).get(token)
        tokenizer = self.processor.tokenizer
        if token not in tokenizer.get_vocab():
            raise ConfigError(
                f"the LMM has no token {token!r}; add it: lmm=dict(..., added_tokens=[{token!r}])"
            )
        token_id = int(tokenizer.convert_tokens_to_ids(token))
        # Between words, because some tokenizers put a piece of space before what begins a text.
        if tokenizer(f"a {token} b", add_special_tokens=False).input_ids.count(token_id) != 1:
            raise ConfigError(
                f"{token!r} is in the LMM's vocabulary, but its tokenizer does not read it as one token in a text; "
                "choose another text, and name it in `added_tokens`"
            )
        return token_id

    @torch.no_grad()
    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """See :class:`LMMAdapter`."""
        table = self.model.get_input_embeddings()
        if table.weight.is_meta:
            return torch.empty(len(names), table.weight.shape[1], device="meta")
        tokenizer = self._processor().tokenizer
        means = []
        for name in names:
            try:
                check_text(name, "class name")
            except FieldError as error:
                raise ConfigError(str(error)) from error
            ids = tokenizer(name, add_special_tokens=False).input_ids
            if not ids:
                raise ConfigError(f"class name {name!r} has no token; give it a name of at least one letter")
            means.append(table(torch.tensor(ids, device=self.device)).float().mean(0))
        return torch.stack(means)


def _unread_regions(record_id: str) -> ConfigError:
    return ConfigError(
        f"{record_id} points at regions, which the untouched LMM cannot read (base mode): there is no answer of it to "
        "compare with; leave such samples out"
    )
