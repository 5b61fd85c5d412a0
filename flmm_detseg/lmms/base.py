"""The adapter contract: the only way from the rest of the package to a transformers model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.lmms.added.added_tokens import AddedTokens, GrownUnembedding
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.fair_lock import FairLock, exclusive
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.lmms.lora.conv_lora import balance_losses
from flmm_detseg.lmms.lora.groups import LoRAGroup
from flmm_detseg.lmms.lora.layers import lora_gradients
from flmm_detseg.lmms.lora.product import lora_product_penalty, merge_lora
from flmm_detseg.lmms.precision import float32_buffers, restore_buffers
from flmm_detseg.structures import CaptureSpec, Generation, LMMInputs, LMMStates, Phrase, Sample


class LMMAdapter(nn.Module, ABC):
    """An LMM as heads, models and tools use it. The wrapped transformers model is the submodule ``model``.

    :class:`~flmm_detseg.lmms.lmm.LMM` is one family's model as it is; ``CachedLMM`` reads images in groups.

    Attributes:
        model: The transformers model.
        facts: Sizes and places of it.
        attention_pairs: ``(layer, head)`` of the channels of the attention stack, ascending. A family whose heads give
            several maps has all of them for the first level, then all of them for the next.
        ranked_heads: A ranking chose these heads; checkpoints then record which they are.
        frozen: No gradient flows through the LMM: :meth:`encode` runs without autograd.
        lora_groups: LoRA groups by name, see :func:`~flmm_detseg.lmms.lora.groups.add_lora`.
        added_tokens: Tokens that the LMM did not have; None for none.
        trains_base: The LMM's own weights are trained (full fine-tuning, or the tables of all tokens).
        merged: LoRA has become part of the weights: the original LMM is lost.
        checkpoint_buffers: Names of the parameters that :meth:`freeze_trained` froze.
    """

    model: PreTrainedModel
    facts: LMMFacts
    attention_pairs: tuple[tuple[int, int], ...]
    frozen: bool
    lora_groups: Mapping[str, LoRAGroup]
    added_tokens: AddedTokens | None = None
    trains_base: bool = False
    merged: bool = False
    checkpoint_buffers: tuple[str, ...] = ()
    ranked_heads: bool = False

    @property
    def added_parts(self) -> Mapping[str, LMMPart]:
        """Modules added to the LMM by name, see :class:`~flmm_detseg.lmms.added.lmm_part.LMMPart`."""
        return {}

    def needs_parts(self, sample: Sample) -> bool:
        """Whether a sample shows what only parts of the LMM read: it points at regions, or has an image of a modality
        that a projector of one's own is for. The untouched LMM has nothing to say about it: no distillation, no
        divergence.
        """
        return bool(sample.regions)

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Ids of the added tokens that have logits; the untouched LMM knows no such token."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, GrownUnembedding) or self.added_tokens is None:
            return ()
        return head.ids[: len(self.added_tokens.tokens)]

    @property
    def num_layers(self) -> int:
        """L, decoder layers of the language model."""
        return self.facts.num_layers

    @property
    def hidden_size(self) -> int:
        """d, width of the language model."""
        return self.facts.hidden_size

    @property
    def attention_channels(self) -> int:
        """C of the attention stack: selected heads of all layers x grid levels."""
        return len(self.attention_pairs) * self.facts.num_levels

    @property
    def vision_channels(self) -> int:
        """d_v, width of the vision tower."""
        return self.facts.vision.channels

    @property
    def num_vision_layers(self) -> int:
        """Layers of the vision tower; its hidden states have the indices 0 (embeddings) to this."""
        return self.facts.vision.num_layers

    @property
    def patch_size(self) -> int:
        """Side of the vision tower's patches, pixels of its view."""
        return self.facts.vision.patch_size

    @property
    def vision_grid(self) -> tuple[int, int] | None:
        """``(rows, cols)`` of patches the vision tower sees; None where they follow the image."""
        return self.facts.vision.grid

    @property
    def part_prefixes(self) -> Mapping[str, tuple[str, ...]]:
        """Where ``"vision"``, ``"llm"`` and ``"projector"`` are within :attr:`model`, see :class:`LMMFacts`."""
        return self.facts.parts

    @property
    @abstractmethod
    def position_limit(self) -> int | None:
        """Positions that prompt and answer may use together; None where the model does not say."""

    def freeze_unread(self, vision_layers: Sequence[int]) -> None:
        """Freezes parameters that no gradient can reach, such as tower blocks after the last one read.

        Args:
            vision_layers: Hidden states of the tower that heads read, beside what the language model sees.
        """

    def freeze_trained(self) -> None:
        """Freezes every trainable parameter; checkpoints still contain these, as no published weights do."""
        trained = (name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.checkpoint_buffers = (*self.checkpoint_buffers, *trained)
        self.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    @property
    def trained_layout(self) -> dict[str, Any] | None:
        """Settings that trained parts depend on and that no tensor shows, as facts for JSON; None: there are none.

        Checkpoints record it, and are only loaded where it is the same. A part that is not there is None or 0, or has
        no fact.
        """
        layout: dict[str, Any] = {name: part.layout for name, part in self.added_parts.items()}
        if self.added_tokens is not None:
            layout["added_tokens"] = list(self.added_tokens.tokens)
            if self.added_tokens.words:
                layout["trained_words"] = list(self.added_tokens.words)
        return layout or None

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.model.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Rotary frequencies stay float32 whatever the model is cast to.
        before = float32_buffers(self)
        super()._apply(fn, recurse)
        restore_buffers(self, before)
        return self

    def exclusive(self) -> FairLock:
        """A context in which this thread alone computes with the model or switches something of it, see
        :func:`~flmm_detseg.lmms.fair_lock.exclusive`.
        """
        return exclusive(self.model)

    @abstractmethod
    def prepare(self, sample: Sample) -> LMMInputs:
        """Tokenises the text, maps phrases to tokens and preprocesses the image (CPU, no gradient).

        Args:
            sample: Image, text and phrases.

        Returns:
            Tokens, pixels and geometry of the sample, unbatched, on the CPU.

        Raises:
            PhraseNotFoundError: A span lies outside the text.
            PhraseWithoutTokensError: A phrase has no token left.
        """

    @abstractmethod
    def encode(
        self,
        inputs: Sequence[LMMInputs],
        capture: CaptureSpec,
        image_keys: Sequence[str | None] | None = None,
    ) -> LMMStates:
        """Runs the LMM once over a padded batch and captures what is asked, nothing else.

        Args:
            inputs: Prepared samples, any mixture of lengths and image sizes.
            capture: What to keep.
            image_keys: Per sample; samples with equal non-None keys show the same image. What their prompts begin
                with alike (the image at least) runs once and serves them all.

        Returns:
            States in the order of ``inputs``; equal to one call per sample up to rounding.
        """

    @abstractmethod
    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """Greedy answer to ``sample.prompt`` about ``sample.image`` (``sample.text`` is ignored)."""

    @abstractmethod
    def generate_with_states(
        self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> Generation:
        """The answer of :meth:`generate`, token for token, and the rows of its tokens, kept while decoding.

        No second pass over the sequence. Without autograd. Which part of the answer matters may be decided later:
        :meth:`states_of_phrases`.

        Args:
            sample: As in :meth:`generate`.
            capture: What to keep: attention rows, hidden rows, vision layers (logits are not kept; the
                log-probabilities always are).
            max_new_tokens: Longest answer.

        Returns:
            Text, tokens and their log-probabilities (natural), and per token what ``capture`` asks for.

        Raises:
            ConfigError: ``max_new_tokens`` is below 1.
        """

    def generate_together(
        self, samples: Sequence[Sample], capture: CaptureSpec, *, max_new_tokens: int = 128
    ) -> list[Generation]:
        """:meth:`generate_with_states` of several samples, in order: equal to one call each up to rounding.

        One after the other, unless an LMM can do better.
        """
        return [
            self.generate_with_states(sample, capture, max_new_tokens=max_new_tokens) for sample in samples
        ]

    @abstractmethod
    def states_of_phrases(self, generation: Generation, phrases: Sequence[Phrase]) -> LMMStates:
        """The states of one sample, as :meth:`encode` gives them, of phrases of a generated answer.

        Args:
            generation: The answer.
            phrases: K character ranges of ``generation.text``.

        Returns:
            What was captured; lists of one entry.

        Raises:
            PhraseNotFoundError: A span lies outside the answer.
            PhraseWithoutTokensError: A phrase is white space only.
        """

    @abstractmethod
    def base_mode(self) -> AbstractContextManager[None]:
        """Context in which every added part (adapters, taps) is off: the untouched LMM, bit for bit."""

    @property
    def keeps_base(self) -> bool:
        """Whether :meth:`base_mode` still gives the original LMM (not when fully fine-tuned, or merged)."""
        untouched = self.frozen and not (self.merged or self.checkpoint_buffers)
        added = self.added_tokens is not None or len(self.added_parts) > 0
        beside = bool(self.lora_groups) or (added and not self.merged)
        return (untouched or beside) and not self.trains_base

    @property
    def adapted(self) -> bool:
        """Whether the LMM's answers may differ from those in :meth:`base_mode`."""
        added = self.added_tokens is not None or len(self.added_parts) > 0
        return bool(self.lora_groups) or added or not self.keeps_base

    @abstractmethod
    def class_embeddings(self, names: Sequence[str]) -> Tensor:
        """Mean input embedding of each name's tokens, float32 ``[len(names), d]``, no gradient.

        Args:
            names: Class names, each of one or more words.

        Returns:
            A row per name, in order.

        Raises:
            ConfigError: A name is no text that can be read, or has no token.
        """

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of a text that is one token of the LMM, its own or an added one.

        Args:
            token: Such as ``"[SEG]"``.

        Returns:
            The id; None for an adapter that was built without a tokenizer and has no such added token.

        Raises:
            ConfigError: The LMM has no such token, or its tokenizer does not read the text as one.
        """

    def lora_gradients(self, groups: Collection[str]) -> AbstractContextManager[None]:
        """Context in which a forward pass gives a gradient to these LoRA groups only, see
        :func:`~flmm_detseg.lmms.lora.layers.lora_gradients`.
        """
        return lora_gradients(self.model, groups)

    def lora_penalty(self) -> Tensor:
        """L2-SP penalty, see :func:`~flmm_detseg.lmms.lora.product.lora_product_penalty`."""
        return lora_product_penalty(self.model)

    def merge_lora(self) -> int:
        """Merges LoRA into the base weights permanently; see :func:`~flmm_detseg.lmms.lora.product.merge_lora`.

        The LMM is then an ordinary, frozen one: :meth:`base_mode` has nothing left to switch off.

        Returns:
            Number of merged layers.
        """
        count = merge_lora(self.model)
        self.lora_groups = {}
        self.frozen = True
        self.merged = self.merged or count > 0
        left = dict(self.named_parameters())
        self.checkpoint_buffers = tuple(name for name in self.checkpoint_buffers if name in left)
        self.model.eval()
        return count

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Weighted losses that added parts ask for themselves, of the last adapted pass of :meth:`encode`.

        Returns:
            Per Conv-LoRA group ``NAME_balance_loss``, mean over its layers; per part ``NAME.KEY`` of its
            :meth:`LMMPart.losses`, figures for the log among them. Empty in eval mode and without autograd.
        """
        found: dict[str, list[Tensor]] = {}
        for layer, loss in balance_losses(self.model).items():
            found.setdefault(layer.rpartition(".")[2], []).append(loss)
        balance = {
            f"{name}_balance_loss": self.lora_groups[name].balance_weight * torch.stack(losses).mean()
            for name, losses in found.items()
        }
        parts = self.added_parts.items()
        return balance | {
            f"{name}.{key}": value for name, part in parts for key, value in part.losses().items()
        }
