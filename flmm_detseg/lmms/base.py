"""The adapter contract: the only road between this package and a transformers model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from flmm_detseg.structures import CaptureSpec, LMMInputs, LMMStates, Sample


class LMMAdapter(nn.Module, ABC):
    """Wraps one LMM family. The wrapped transformers model is the submodule ``model``.

    Adding a family = one subclass and one processor; heads, models and datasets do not change.
    """

    model: nn.Module

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """L, decoder layers of the language model (hidden rows cover all of them)."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """d, width of the language model."""

    @property
    @abstractmethod
    def attention_channels(self) -> int:
        """C of the attention stack: selected layers x heads x grid levels."""

    @property
    @abstractmethod
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers in the attention stack, in channel order."""

    @property
    @abstractmethod
    def attention_heads(self) -> tuple[int, ...]:
        """Indices of the heads of each of these layers in the attention stack, in channel order."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model's parameters are."""

    @abstractmethod
    def prepare(self, sample: Sample) -> LMMInputs:
        """Tokenises the text, maps phrases to tokens and preprocesses the image (CPU, no gradient).

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
            image_keys: Per sample; samples with equal non-None keys show the same image. Where their prefixes
                are equal too, the image prefix runs once and its keys and values serve them all.

        Returns:
            States in the order of ``inputs``; equal to one call per sample up to rounding.
        """

    @abstractmethod
    def generate(self, sample: Sample, *, max_new_tokens: int = 128) -> str:
        """Greedy answer to ``sample.prompt`` about ``sample.image`` (``sample.text`` is ignored)."""

    @abstractmethod
    def base_mode(self) -> AbstractContextManager[None]:
        """Context in which every added part (adapters, taps) is off: the untouched LMM, bit for bit."""
