"""What transformers' LLaVA families share around the forward pass: construction, facts, generation, modes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.capture.row_tap import ROW_TAP, RowSettings
from flmm_detseg.lmms.capture.token_rules import answer_room, end_ids, greedy_config, warn_if_cut
from flmm_detseg.lmms.lora.groups import add_lora, lora_groups
from flmm_detseg.lmms.lora.layers import lora_off, recompute_contexts
from flmm_detseg.lmms.processors import DESCRIPTION_PROMPT, LMMProcessor, ProcessorSettings
from flmm_detseg.lmms.turns import exclusive
from flmm_detseg.lmms.weights.facts import check_config, check_facts, default_max_length, position_limit
from flmm_detseg.lmms.weights.loading import load_model, load_normalisation, load_tokenizer, torch_dtype
from flmm_detseg.lmms.weights.precision import float32_buffers, restore_buffers
from flmm_detseg.structures import LMMInputs, PatchGrid, Sample
from flmm_detseg.utils.values import FieldError, check_text


class HFLlavaBase(LMMAdapter):
    """A LLaVA of transformers but for its forward pass (:mod:`flmm_detseg.lmms.hf_adapter`).

    Args:
        model: The family's ``...ForConditionalGeneration``. Its language model's attention function is
            exchanged for :mod:`flmm_detseg.lmms.capture.row_tap`, which is sdpa outside of :meth:`encode`.
        processor: The family's processor; None where only shapes matter (then :meth:`prepare` and
            :meth:`generate` raise).
        merge: Merge of the attention rows of a phrase's tokens, ``"mean"`` or ``"max"``.
        layers: Decoder layers whose attention is read, None for all.
        heads: Heads whose attention is read, None for all.
        attention: ``"rows"`` or ``"eager"`` (parity checks).
        frozen: No parameter of the LMM gets a gradient, it stays in eval mode, :meth:`encode` runs without
            autograd. False leaves ``requires_grad`` as it is.
        share_prefix: Samples with equal image run behind one prefix: what their prompts begin with alike. Also with
            a trainable LMM; the pass stays differentiable.
        lora: LoRA groups, see :func:`~flmm_detseg.lmms.lora.groups.lora_groups`. The LMM's own weights are frozen
            then, whatever ``frozen`` says, and :meth:`encode` runs with autograd.
        gradient_checkpointing: Blocks of tower and language model keep their input only and are repeated in the
            backward pass: less memory, about a third more time, the same gradients. Only in training mode.

    Raises:
        ConfigError: Row settings that do not fit the model, facts of the model that disagree (see
            :mod:`flmm_detseg.lmms.weights.facts`), or ``gradient_checkpointing`` of an LMM that has no gradients.
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
        lora: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        text_config = model.config.text_config
        self.rows = RowSettings(merge, layers, heads, attention)
        self._layers, self._heads = self.rows.resolve(
            text_config.num_hidden_layers, text_config.num_attention_heads
        )
        check_facts(model, processor)
        if processor is not None:
            processor.add_end_tokens(end_ids(model))
        self.model = model
        self.processor = processor
        length = 0 if processor is None else processor.settings.max_length
        self._position_limit = position_limit(model, length)
        self.frozen = frozen
        self.share_prefix = share_prefix
        model.set_attn_implementation({"text_config": ROW_TAP})
        if frozen:
            model.requires_grad_(False)
            model.eval()
        self.lora_groups = {}
        if lora:
            add_lora(self, lora_groups(lora))
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
        gradient_checkpointing: bool = False,
    ) -> Self:
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
            lora: See the class, e.g. ``dict(vision=dict(r=8), llm=dict(target="all-linear"))``.
            gradient_checkpointing: See the class.

        Raises:
            ConfigError: No such folder, a file is missing, or an argument cannot be used.
            CheckpointError: The weights are absent, damaged, or do not fit the config.
        """
        settings = RowSettings.from_dict(rows)
        model = load_model(cls.model_class, cls.config_class, pretrained, torch_dtype(dtype))
        mean, std = load_normalisation(pretrained, model.config)
        processor = cls.build_processor(
            model.config,
            load_tokenizer(pretrained),
            ProcessorSettings(
                prompt_template=prompt_template,
                description_prompt=description_prompt,
                max_length=max_length or default_max_length(model),
                image_mean=mean,
                image_std=std,
            ),
        )
        return cls(
            model,
            processor,
            **vars(settings),
            frozen=frozen,
            share_prefix=share_prefix,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
        )

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
        lora: Mapping[str, Mapping[str, Any]] | None = None,
        gradient_checkpointing: bool = False,
    ) -> Self:
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
            lora: See the class, e.g. ``dict(vision=dict(r=8), llm=dict(target="all-linear"))``.
            gradient_checkpointing: See the class.

        Raises:
            ConfigError: An argument cannot be used.
        """
        settings = RowSettings.from_dict(rows)
        if isinstance(config, dict):
            config = cls.config_class.from_dict(dict(config))
        check_config(config, "the config")
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
                    max_length=max_length or default_max_length(model),
                ),
            )
        return cls(
            model,
            processor,
            **vars(settings),
            frozen=frozen,
            share_prefix=share_prefix,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
        )

    def _checkpoint_gradients(self) -> None:
        if self.frozen:
            raise ConfigError(
                "`gradient_checkpointing` saves memory of a backward pass, but the LMM is frozen and has none; leave "
                "it out, or add `lora`"
            )
        self.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": partial(recompute_contexts, self.model)}
        )

    @classmethod
    @abstractmethod
    def build_processor(
        cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, settings: ProcessorSettings
    ) -> LMMProcessor:
        """The family's processor for a model of this config."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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
    def vision_channels(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.model.config.vision_config.hidden_size

    @property
    def patch_size(self) -> int:
        """See :class:`LMMAdapter`."""
        return self.model.config.vision_config.patch_size

    @property
    def vision_grid(self) -> tuple[int, int]:
        """See :class:`LMMAdapter`."""
        side = self.model.config.vision_config.image_size // self.patch_size
        return side, side

    @property
    def position_limit(self) -> int | None:
        """Positions that prompt and answer may use together; None where the model does not say."""
        return self._position_limit

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """See :class:`LMMAdapter`."""
        tower = self.model.model.vision_tower.vision_model
        blocks = tower.encoder.layers
        read = self.model.config.vision_feature_layer
        wanted = [*([read] if isinstance(read, int) else read), *vision_layers]
        # Hidden state i is what block i - 1 gave; negative ones count from the end.
        last = max(layer % (len(blocks) + 1) for layer in wanted)
        for unread in (*blocks[last:], tower.post_layernorm):
            unread.requires_grad_(False)

    @property
    def part_prefixes(self) -> dict[str, str]:
        """See :class:`LMMAdapter`."""
        return {
            "vision": "model.vision_tower",
            "llm": "model.language_model",
            "projector": "model.multi_modal_projector",
        }

    @property
    def device(self) -> torch.device:
        """See :class:`LMMAdapter`."""
        return self.model.device

    def train(self, mode: bool = True) -> Self:
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

    @torch.no_grad()
    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """See :class:`LMMAdapter`."""
        processor = self._processor()
        item = processor.question(sample)
        room = answer_room(len(item.input_ids), self.position_limit, max_new_tokens, sample.record_id)
        arguments = self.generation_inputs(item.pixel_values.to(self.device, self.model.dtype), item.grid)
        input_ids = item.input_ids[None].to(self.device)
        with self._eval_mode():
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                **arguments,
                generation_config=greedy_config(self.model, room),
                use_model_defaults=False,
                tokenizer=processor.tokenizer,
            )
        answer = output[0, input_ids.shape[1] :]
        warn_if_cut(len(answer), int(answer[-1]), end_ids(self.model), room, max_new_tokens)
        return processor.tokenizer.decode(answer, skip_special_tokens=True).strip()

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
        with exclusive(self.model), self._text_attention("sdpa"), self._eval_mode(), lora_off(self.model):
            yield

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
