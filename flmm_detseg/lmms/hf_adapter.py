"""What transformers' LLaVA families share: one forward pass, and only what was asked is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.loading import load_model, load_normalisation, load_tokenizer, torch_dtype
from flmm_detseg.lmms.precision import float32_buffers, restore_buffers
from flmm_detseg.lmms.prefix import PackedBatch, PhraseRows, distinct_images, pack, phrase_rows
from flmm_detseg.lmms.processors import DESCRIPTION_PROMPT, LMMProcessor, ProcessorSettings
from flmm_detseg.lmms.row_tap import ROW_TAP, RowSettings, RowTap
from flmm_detseg.lmms.unpack import hidden_rows, split_attention, split_hidden
from flmm_detseg.structures import CaptureSpec, LMMInputs, LMMStates, PatchGrid, Sample


class HFLlavaAdapter(LMMAdapter):
    """A LLaVA of transformers; a family adds its classes, its processor and how it turns pixels into image
    tokens.

    Args:
        model: The family's ``...ForConditionalGeneration``. Its language model's attention function is
            exchanged for :mod:`flmm_detseg.lmms.row_tap`, which is sdpa outside of :meth:`encode`.
        processor: The family's processor; None where only shapes matter (then :meth:`prepare` and
            :meth:`generate` raise).
        merge: Merge of the attention rows of a phrase's tokens, ``"mean"`` or ``"max"``.
        layers: Decoder layers whose attention is read, None for all.
        heads: Heads whose attention is read, None for all.
        attention: ``"rows"`` or ``"eager"`` (parity checks).
        frozen: No parameter of the LMM gets a gradient, it stays in eval mode, :meth:`encode` runs without
            autograd. False leaves ``requires_grad`` as it is.
        share_prefix: Samples with equal image and prompt run as answers behind one prefix. Also with a
            trainable LMM; the pass stays differentiable.

    Raises:
        ConfigError: Row settings that do not fit the model, or a model that keeps the class token among its
            image tokens.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PretrainedConfig]]
    num_levels: ClassVar[int] = 1

    def __init__(
        self,
        model: PreTrainedModel,
        processor: LMMProcessor | None,
        *,
        merge: str = "mean",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        attention: str = "rows",
        frozen: bool = True,
        share_prefix: bool = True,
    ) -> None:
        super().__init__()
        text_config = model.config.text_config
        self.rows = RowSettings(merge, layers, heads, attention)
        self._layers, self._heads = self.rows.resolve(
            text_config.num_hidden_layers, text_config.num_attention_heads
        )
        if model.config.vision_feature_select_strategy != "default":
            raise ConfigError(
                "vision_feature_select_strategy must be 'default': the class token is no image patch"
            )
        self.model = model
        self.processor = processor
        self.frozen = frozen
        self.share_prefix = share_prefix
        model.set_attn_implementation({"text_config": ROW_TAP})
        if frozen:
            model.requires_grad_(False)
            model.eval()

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
    ) -> HFLlavaAdapter:
        """Builds the adapter from a folder in hub layout, or from a model name on the hub.

        Args:
            pretrained: Folder with config, safetensors, tokenizer and preprocessor config; or a hub name.
            dtype: Of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            prompt_template: ``"vicuna"`` or ``"mistral"``.
            description_prompt: Question for samples without a prompt.
            rows: Settings of the attention stack: any of ``merge``, ``layers``, ``heads``, ``attention``.
            max_length: Longest sequence in tokens; None for what the language model was built for.
            frozen: See the class.
            share_prefix: See the class.

        Raises:
            ConfigError: No such folder, a file is missing, or an argument cannot be used.
            CheckpointError: The weights are absent, damaged, or do not fit the config.
        """
        settings = RowSettings.from_dict(rows)
        model = load_model(cls.model_class, cls.config_class, pretrained, torch_dtype(dtype))
        mean, std = load_normalisation(pretrained)
        processor = cls.build_processor(
            model.config,
            load_tokenizer(pretrained),
            ProcessorSettings(
                prompt_template=prompt_template,
                description_prompt=description_prompt,
                max_length=max_length or model.config.text_config.max_position_embeddings,
                image_mean=mean,
                image_std=std,
            ),
        )
        return cls(model, processor, **vars(settings), frozen=frozen, share_prefix=share_prefix)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any] | PretrainedConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        dtype: str = "float32",
        prompt_template: str = "vicuna",
        description_prompt: str = DESCRIPTION_PROMPT,
        rows: dict[str, Any] | None = None,
        max_length: int | None = None,
        frozen: bool = True,
        share_prefix: bool = True,
    ) -> HFLlavaAdapter:
        """Builds the adapter with random weights, on the default device (``with torch.device("meta")``:
        shapes only).

        Args:
            config: Model config or its fields.
            tokenizer: Fast tokenizer, or the folder or hub name of one; None for an adapter that only has
                shapes.
            dtype: Of the weights.
            prompt_template: See :meth:`from_pretrained`, as for all that follow.
            description_prompt: Question for samples without a prompt.
            rows: Settings of the attention stack.
            max_length: Longest sequence in tokens.
            frozen: See the class.
            share_prefix: See the class.

        Raises:
            ConfigError: An argument cannot be used.
        """
        settings = RowSettings.from_dict(rows)
        if isinstance(config, dict):
            config = cls.config_class.from_dict(dict(config))
        model = cls.model_class(config)
        frequencies = float32_buffers(model)
        model.to(torch_dtype(dtype))
        restore_buffers(model, frequencies)
        processor = None
        if tokenizer is not None:
            processor = cls.build_processor(
                config,
                load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer,
                ProcessorSettings(
                    prompt_template=prompt_template,
                    description_prompt=description_prompt,
                    max_length=max_length or config.text_config.max_position_embeddings,
                ),
            )
        return cls(model, processor, **vars(settings), frozen=frozen, share_prefix=share_prefix)

    @classmethod
    @abstractmethod
    def build_processor(
        cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, settings: ProcessorSettings
    ) -> LMMProcessor:
        """The family's processor for a model of this config."""

    @abstractmethod
    def image_tokens(self, pixel_values: Sequence[Tensor], grids: Sequence[PatchGrid]) -> list[Tensor]:
        """Runs tower and projector.

        Args:
            pixel_values: Per image the processor's pixels, on the model's device and in its dtype.
            grids: Per image its geometry.

        Returns:
            Per image ``[num_tokens, d]`` in sequence order.
        """

    @abstractmethod
    def base_views(self, pixel_values: Sequence[Tensor]) -> list[int]:
        """Per image the place of its squared whole view in the tower's batch."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HFLlavaAdapter:
        before = float32_buffers(self)
        super()._apply(fn, recurse)
        restore_buffers(self, before)
        return self

    @property
    def num_layers(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.model.config.text_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.model.config.text_config.hidden_size

    @property
    def attention_channels(self) -> int:
        """See :class:`LMMAdapter`."""
        return len(self._layers) * len(self._heads) * self.num_levels

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See :class:`LMMAdapter`."""
        return tuple(self._layers)

    @property
    def attention_heads(self) -> tuple[int, ...]:
        """See :class:`LMMAdapter`."""
        return tuple(self._heads)

    @property
    def device(self) -> torch.device:
        """See :class:`LMMAdapter`."""
        return self.model.device

    def train(self, mode: bool = True) -> HFLlavaAdapter:
        """Like ``nn.Module.train``, but a frozen LMM stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def prepare(self, sample: Sample) -> LMMInputs:
        """See :class:`LMMAdapter`."""
        return self._processor()(sample)

    def _processor(self) -> LMMProcessor:
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
            features, vision = self._see(inputs, owners, capture.vision_layers)
            if not (capture.attention or capture.hidden or capture.logits):
                return LMMStates(vision=vision)
            batch = self._pack(inputs, owners)
            places = phrase_rows(inputs, batch)
            stack, hidden, last = self._read(batch, self._embed(batch, owners, features), places, capture)
            return LMMStates(
                attention=split_attention(stack, inputs, places) if stack is not None else None,
                hidden=split_hidden(hidden, places) if hidden is not None else None,
                vision=vision,
                logits=self._logits(last, inputs, batch) if capture.logits else None,
                logits_start=[item.prefix_length - 1 for item in inputs] if capture.logits else None,
            )

    def _see(
        self, inputs: Sequence[LMMInputs], owners: Sequence[int], layers: tuple[int, ...]
    ) -> tuple[dict[int, Tensor], list[dict[int, Tensor]] | None]:
        """Image tokens per distinct image, and the asked vision layers per sample."""
        images = sorted(set(owners))
        pixels = [inputs[index].pixel_values.to(self.device, self.model.dtype) for index in images]
        tower_states: list[Tensor] = []
        with ExitStack() as stack:
            if layers:
                self._check_vision_layers(layers)
                tower = self.model.model.vision_tower
                hook = tower.register_forward_hook(
                    lambda _, __, output: tower_states.extend(output.hidden_states)
                )
                stack.callback(hook.remove)
            tokens = self.image_tokens(pixels, [inputs[index].grid for index in images])
        features = dict(zip(images, tokens, strict=True))
        if not layers:
            return features, None
        maps = {}
        for index, view in zip(images, self.base_views(pixels), strict=True):
            level = inputs[index].grid.levels[0]
            # The class token leads.
            maps[index] = {
                layer: tower_states[layer][view, 1:].T.reshape(-1, level.rows, level.cols) for layer in layers
            }
        return features, [maps[owner] for owner in owners]

    def _check_vision_layers(self, layers: tuple[int, ...]) -> None:
        last = self.model.config.vision_config.num_hidden_layers
        if wrong := [layer for layer in layers if not 0 <= layer <= last]:
            raise ConfigError(f"vision_layers {wrong} do not exist; the tower has hidden states 0..{last}")

    def _pack(self, inputs: Sequence[LMMInputs], owners: Sequence[int]) -> PackedBatch:
        batch = pack(inputs, owners if self.share_prefix else None)
        window = getattr(self.model.config.text_config, "sliding_window", None)
        if batch.visible is not None and window is not None and batch.input_ids.shape[1] >= window:
            # Our mask knows no window; inside of the window there is nothing to know.
            batch = pack(inputs, None)
        return batch

    def _embed(self, batch: PackedBatch, owners: Sequence[int], features: dict[int, Tensor]) -> Tensor:
        embeds = self.model.get_input_embeddings()(batch.input_ids.to(self.device))
        tokens = torch.cat([features[owners[members[0]]] for members in batch.groups])
        return embeds.masked_scatter(batch.image_mask.to(embeds.device)[..., None], tokens.to(embeds))

    def _read(
        self, batch: PackedBatch, embeds: Tensor, places: PhraseRows, capture: CaptureSpec
    ) -> tuple[Tensor | None, list[Tensor] | None, Tensor]:
        """One pass of the language model: attention rows, hidden rows per layer, last hidden states."""
        device = embeds.device
        eager = self.rows.attention == "eager"
        if eager and torch.is_grad_enabled() and self.model.is_gradient_checkpointing:
            raise ConfigError(
                "rows `attention`='eager' is for parity checks: not with gradient checkpointing"
            )
        arguments = _mask_and_positions(batch, embeds, additive=eager)
        tap = self._tap(places, device) if capture.attention else None
        if tap is not None:
            arguments |= {"output_attentions": True} if eager else {"row_tap": tap}
        language_model = self.model.model.language_model
        with ExitStack() as stack:
            stack.enter_context(self._text_attention("eager" if eager else ROW_TAP))
            hidden = None
            if capture.hidden:
                hidden = stack.enter_context(hidden_rows(language_model, places.positions.to(device)))
            output = language_model(inputs_embeds=embeds, use_cache=False, **arguments)
        if eager and tap is not None:
            for layer, attention in enumerate(output.attentions):
                tap.collect_eager(layer, attention)
        return tap.finish() if tap is not None else None, hidden, output.last_hidden_state

    def _tap(self, places: PhraseRows, device: torch.device) -> RowTap:
        return RowTap(
            places.positions.to(device),
            places.phrase_ids.to(device),
            places.columns.to(device),
            places.num_phrases,
            layers=self._layers,
            heads=None if self.rows.heads is None else self._heads,
            merge=self.rows.merge,
        )

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

    def _logits(self, last: Tensor, inputs: Sequence[LMMInputs], batch: PackedBatch) -> list[Tensor]:
        rows = {member: row for row, members in enumerate(batch.groups) for member in members}
        states = [
            last[rows[index], batch.token_index[index][item.prefix_length - 1 :].to(last.device)]
            for index, item in enumerate(inputs)
        ]
        return list(
            self.model.get_output_embeddings()(torch.cat(states)).split([len(part) for part in states])
        )

    @torch.no_grad()
    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """See :class:`LMMAdapter`."""
        processor = self._processor()
        item = processor.question(sample)
        arguments = self.generation_inputs(item.pixel_values.to(self.device, self.model.dtype), item.grid)
        input_ids = item.input_ids[None].to(self.device)
        with self._eval_mode():
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                **arguments,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        return processor.tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True).strip()

    @abstractmethod
    def generation_inputs(self, pixel_values: Tensor, grid: PatchGrid) -> dict[str, Tensor]:
        """The image arguments of the model's own ``generate``."""

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
        with self._text_attention("sdpa"), self._eval_mode():
            yield


def _mask_and_positions(batch: PackedBatch, embeds: Tensor, *, additive: bool) -> dict[str, Any]:
    """Arguments of the language model; ``additive`` for eager blocks, which add the mask to the scores."""
    if batch.visible is None or batch.position_ids is None:
        # All ones, not None: transformers then keeps sdpa's causal kernel and builds no mask.
        return {"attention_mask": torch.ones(batch.input_ids.shape, dtype=torch.bool, device=embeds.device)}
    mask = batch.visible.to(embeds.device)
    if additive:
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    return {"attention_mask": mask, "position_ids": batch.position_ids.to(embeds.device)}
