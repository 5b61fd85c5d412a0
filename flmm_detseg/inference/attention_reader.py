"""Attention of an unmodified LMM, without a checkpoint of ours: where it looked, phrase by phrase or word by word."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference.attention_maps import AttentionMaps
from flmm_detseg.inference.samples import Span, located_phrases, question_sample
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.structures import CaptureSpec, PatchGrid, Phrase

_WORD = re.compile(r"\S+")


class AttentionReader:
    """Reads attention rows of any supported LMM while sdpa runs: only the wanted rows are computed beside it.

    Args:
        lmm: The LMM; adapted or not, it is read as it is.

    Attributes:
        capture: What is kept of a pass.
        layers: Decoder layers that are read, ascending.
        heads: Heads that are read of each, ascending.

    Raises:
        ConfigError: The LMM reads other heads of one layer than of another, as a ranking chooses them.

    Example:
        >>> reader = AttentionReader.from_pretrained("Qwen/Qwen3-VL-2B-Instruct")
        >>> maps = reader.read("cat.jpg", "a cat sits on a mat", phrases=["a cat", "a mat"])
        >>> maps.heat_map(0).shape  # of the original image
    """

    capture = CaptureSpec(attention=True)

    def __init__(self, lmm: LMMAdapter) -> None:
        self.lmm = lmm.eval()
        self.layers, self.heads = (
            tuple(sorted(set(indices))) for indices in zip(*lmm.attention_pairs, strict=True)
        )
        if len(self.layers) * len(self.heads) != len(lmm.attention_pairs):
            raise ConfigError(
                f"AttentionReader labels rows by layer and by head, and this LMM reads {len(lmm.attention_pairs)} "
                "single heads (rows `heads`='top:N'); leave `heads` out there, or give lists of layers and heads"
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        *,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        prompt_template: str | None = None,
        max_length: int | None = None,
    ) -> AttentionReader:
        """Loads an LMM; the family is found from its config.

        Args:
            pretrained: Folder in hub layout, or hub name, of a model of any family in ``lmms/families``.
            dtype: Of the weights; None: bfloat16 on a GPU, float32 without.
            device: For example ``"cuda:0"``; None takes the GPU when there is one.
            layers: Decoder layers to read; None: all whose rows say something about the image.
            heads: Heads to read; None: all.
            prompt_template: Of LLaVA and LLaVA-NeXT, a name of its chat templates; None: ``"mistral"`` for
                LLaVA-NeXT over Mistral, else ``"vicuna"``. Other families have their own.
            max_length: Longest sequence in tokens; None: what the language model was built for.

        Returns:
            The reader.

        Raises:
            ConfigError: No such model, or none of a family that is known; an argument cannot be used.
            CheckpointError: The weights are absent, damaged, or do not fit the config.
        """
        from flmm_detseg.lmms.load_lmm import load_lmm  # imports every family

        return cls(
            load_lmm(
                pretrained,
                rows={"layers": layers, "heads": heads},
                dtype=dtype,
                device=device,
                prompt_template=prompt_template,
                max_length=max_length,
            )
        )

    def read(
        self,
        image: ImageLike,
        text: str,
        phrases: Sequence[str] | None = None,
        *,
        spans: Sequence[Span | Sequence[Span]] | None = None,
        prompt: str | None = None,
        turns: Sequence[tuple[str, str]] = (),
        more_images: Sequence[ImageLike] = (),
    ) -> AttentionMaps:
        """Lets the LMM read a text as its own answer.

        Args:
            image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``: the one that is looked at.
            text: The answer.
            phrases: Texts that occur in it as whole words; None (and no ``spans``): every word.
            spans: Instead of phrases: character ranges of the text, half-open.
            prompt: The question; None asks for a description.
            turns: Earlier questions and their answers, in order.
            more_images: Further images of the prompt, after ``image``.

        Returns:
            A map for each phrase.

        Raises:
            PhraseNotFoundError: A phrase is not in the text.
            DataError: An image cannot be read, the text is empty, or phrases and spans are both given.
        """
        if not text.strip():
            raise DataError("there is no text to read")
        pixels = read_image(image, "image")
        if phrases is not None and spans is not None:
            raise DataError("pieces of the text are given by phrases or spans, not both")
        every = phrases is None and spans is None
        chosen = words(text) if every else located_phrases("text", text, phrases, spans)
        sample = question_sample(
            pixels, prompt, text=text, phrases=chosen, turns=turns, more_images=more_images
        )
        with torch.inference_mode():
            item = self.lmm.prepare(sample)
            attention = self.lmm.encode([item], self.capture).attention
        assert attention is not None
        return self._maps(pixels, text, chosen, item.grid, attention[0].__getitem__)

    def answer(
        self,
        image: ImageLike,
        question: str | None = None,
        *,
        turns: Sequence[tuple[str, str]] = (),
        more_images: Sequence[ImageLike] = (),
        max_new_tokens: int = 128,
    ) -> AttentionMaps:
        """Lets the LMM answer (greedy), and keeps where it looked while it wrote each word.

        Args:
            image: See :meth:`read`.
            question: Free text; None asks for a description.
            turns: See :meth:`read`.
            more_images: See :meth:`read`.
            max_new_tokens: Longest answer.

        Returns:
            A map for each word of the answer, made when it is asked for; ``text`` is the answer.

        Raises:
            DataError: An image cannot be read, or a turn is no pair of texts.
        """
        pixels = read_image(image, "image")
        sample = question_sample(pixels, question, turns=turns, more_images=more_images)
        with torch.inference_mode():
            generation = self.lmm.generate_with_states(sample, self.capture, max_new_tokens=max_new_tokens)
        chosen = words(generation.text)

        def stack_of(index: int) -> torch.Tensor:
            with torch.inference_mode():
                attention = self.lmm.states_of_phrases(generation, [chosen[index]]).attention
            assert attention is not None
            return attention[0][0]

        return self._maps(pixels, generation.text, chosen, generation.inputs.grid, stack_of)

    def _maps(
        self,
        pixels: np.ndarray,
        text: str,
        chosen: Sequence[Phrase],
        grid: PatchGrid,
        stack_of: Callable[[int], torch.Tensor],
    ) -> AttentionMaps:
        return AttentionMaps(
            image=pixels,
            text=text,
            pieces=tuple(" ".join(text[start:end] for start, end in phrase.spans) for phrase in chosen),
            spans=tuple(phrase.spans for phrase in chosen),
            layers=self.layers,
            heads=self.heads,
            levels=self.lmm.facts.num_levels,
            grid=grid,
            stack_of=stack_of,
        )


def words(text: str) -> tuple[Phrase, ...]:
    """Every run of characters without white space.

    Args:
        text: Any.

    Returns:
        One phrase each, in order.
    """
    return tuple(Phrase(((match.start(), match.end()),)) for match in _WORD.finditer(text))
