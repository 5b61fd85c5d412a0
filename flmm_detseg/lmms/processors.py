"""From a sample to the tensors of an LMM family: prompt, tokens, phrase membership, pixels, patch grid."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError, PhraseWithoutTokensError
from flmm_detseg.lmms.chat import ChatTemplate, find_template
from flmm_detseg.ops.spans import tokens_of_spans
from flmm_detseg.structures import ANSWER_TASKS, ImageInputs, LMMInputs, PatchGrid, Phrase, Sample
from flmm_detseg.utils.values import FieldError, check_words

DESCRIPTION_PROMPT = "Please give me a description of the image."
IGNORE_INDEX = -100


@dataclass(frozen=True)
class ProcessorSettings:
    """What a user may choose about prompts and pixels.

    Attributes:
        prompt_template: A name of :data:`~flmm_detseg.lmms.chat.TEMPLATES`; families with a template of their own do
            not read it.
        description_prompt: Question for samples without a prompt.
        max_length: Longest sequence in tokens, image tokens included; longer texts are cut at the end.
        image_mean: Mean of RGB in [0, 1].
        image_std: Standard deviation of RGB.
    """

    prompt_template: str = "vicuna"
    description_prompt: str = DESCRIPTION_PROMPT
    max_length: int = 4096
    image_mean: Sequence[float] = tuple(OPENAI_CLIP_MEAN)
    image_std: Sequence[float] = tuple(OPENAI_CLIP_STD)

    def __post_init__(self) -> None:
        find_template(self.prompt_template)
        if self.max_length < 1:
            raise ConfigError(f"`max_length` is {self.max_length}; a positive number of tokens is needed")


@dataclass(frozen=True)
class Tokens:
    """A whole conversation in tokens.

    Attributes:
        input_ids: int64 ``[t]``; an image is one token, or as many as it has in the sequence.
        offsets: Character range ``(start, end)`` of each token.
        length: Characters of the text that the offsets are about. Images may be written out in it, so only distances
            from its end are known.
        repeats: int64 ``[t]``: how often each token stands in the sequence.
        images: Prepared images.
    """

    input_ids: Tensor
    offsets: list[tuple[int, int]]
    length: int
    repeats: Tensor
    images: tuple[ImageInputs, ...]


class LMMProcessor(ABC):
    """Text side of every family; :class:`PixelProcessor` and :class:`~flmm_detseg.lmms.hub_family.HubProcessor` add
    the image side.

    Args:
        tokenizer: Fast tokenizer (character offsets) that knows the image token.
        image_token_id: Id of the image token in the model's config.
        settings: Prompts and pixels.

    Raises:
        ConfigError: A slow tokenizer, or one whose image token is not the model's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, image_token_id: int, settings: ProcessorSettings
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(f"`tokenizer` is a {type(tokenizer).__name__}; this family needs a tokenizer")
        if not tokenizer.is_fast:
            raise ConfigError(
                "the tokenizer gives no character offsets; a fast one (tokenizer.json) is needed"
            )
        image_token = tokenizer.added_tokens_decoder.get(image_token_id)
        if image_token is None:
            raise ConfigError(
                f"the tokenizer has no image token with the model's id {image_token_id}; "
                "use the tokenizer stored with the model"
            )
        self.tokenizer = tokenizer
        self.image_token = image_token.content
        self.image_token_id = image_token_id
        # Text of users and data sets is text: it must not bring an image or end a turn. Other special tokens
        # (<s>, <unk>) change nothing else in the sequence.
        self._control_words = {self.image_token: None}
        if tokenizer.eos_token is not None:
            self._control_words[tokenizer.eos_token] = None
        self.settings = settings
        if self.template.turn_end is not None:
            self._control_words[self.template.turn_end] = None

    @property
    def template(self) -> ChatTemplate:
        """The form of a conversation."""
        return find_template(self.settings.prompt_template)

    @property
    def image_text(self) -> str:
        """What stands for one image in a text."""
        return self.image_token

    @property
    def control_words(self) -> frozenset[str]:
        """What texts of users and data sets may not have: it would bring an image or end a turn."""
        return frozenset(self._control_words)

    def add_end_tokens(self, token_ids: Iterable[int]) -> None:
        """Tokens that end the model's answers beside the tokenizer's own end token; texts may not hold special ones.

        A word or a line break that ends answers as well stays text.
        """
        for token_id in token_ids:
            token = self.tokenizer.added_tokens_decoder.get(token_id)
            if token is not None and token.special:
                self._control_words[token.content] = None

    def known_tokens(self, words: Sequence[str]) -> list[int]:
        """Ids of tokens that the tokenizer has.

        Args:
            words: Their texts, as its vocabulary spells them.

        Returns:
            Their ids.

        Raises:
            ConfigError: It has no such token.
        """
        known = self.tokenizer.get_vocab()
        if unknown := [word for word in words if word not in known]:
            raise ConfigError(
                f"`added_tokens.words` names {unknown}, which are no tokens of this LMM; spell them as its vocabulary "
                "does (a piece at the beginning of a word has a mark there), or name them under `tokens`"
            )
        return [known[word] for word in words]

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Gives the tokenizer further tokens, which are text (answers keep them); on a copy of it, others may use it.

        Args:
            tokens: Their texts.

        Returns:
            Their ids.

        Raises:
            ConfigError: It has such a token already.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        if there := sorted(set(tokens) & set(tokenizer.get_vocab())):
            raise ConfigError(
                f"`added_tokens` names {there}, which the tokenizer has already; leave them out, or choose other texts"
            )
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        self.tokenizer = tokenizer
        return [int(token_id) for token_id in tokenizer.convert_tokens_to_ids(list(tokens))]

    @abstractmethod
    def tokenise(self, text: str, images: Sequence[np.ndarray]) -> Tokens:
        """Tokenises a text and prepares its images.

        Args:
            text: With :attr:`image_text` for each image.
            images: RGB, uint8, ``[H, W, 3]``.

        Returns:
            Tokens of the text and the images prepared for the model, in the order of the text.
        """

    def positions(self, input_ids: Tensor, images: Sequence[ImageInputs]) -> Tensor | None:
        """Rotary positions of a sequence, int64 ``[A, T]``; None: 0..T-1."""
        return None

    def __call__(self, sample: Sample) -> LMMInputs:
        """Prepares one sample.

        Args:
            sample: Image, text and phrases.

        Returns:
            The sample in tokens and pixels, cut at ``max_length`` (CPU).

        Raises:
            ConfigError: The sample is an answer to learn, and the tokenizer has no end token.
            DataError: An image is no RGB uint8 array, or prompt or text hold the image token or a token that ends a
                turn (``</s>``).
            PhraseNotFoundError: A span lies outside the text.
            PhraseWithoutTokensError: A phrase has no token, or lost one because the text was cut at
                ``max_length``.
        """
        images = (sample.image, *sample.more_images)
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise DataError(
                    f"{sample.record_id}: image is {image.dtype} {image.shape}; uint8 (H, W, 3) RGB is needed"
                )
        prefix = self._prefix(sample)
        check_spans(sample.text, sample.phrases, sample.record_id)
        answer = f"{self.template.answer_lead}{sample.text}" if sample.text else ""
        if sample.text and sample.task in ANSWER_TASKS:
            answer += self._turn_end("an answer cannot be learned")
        full_text = prefix + answer
        tokens = self.tokenise(full_text, images)
        grid = tokens.images[0].grid
        if 0 in grid.output_grid:
            raise DataError(
                f"{sample.record_id}: image of {grid.image_size} is too narrow: no image token is left of it"
            )
        offsets, repeats = tokens.offsets, tokens.repeats
        # From the end: images may be written out in what the offsets are about.
        start = tokens.length - len(answer)
        shift = start + len(self.template.answer_lead)
        text = " " * start + answer if tokens.length != len(full_text) else full_text
        spans = [[(first + shift, last + shift) for first, last in phrase.spans] for phrase in sample.phrases]
        phrase_tokens = tokens_of_spans(offsets, text, spans)
        prefix_length = next((i for i, (_, end) in enumerate(offsets) if end > start), len(offsets))
        labels = tokens.input_ids.clone()
        labels[:prefix_length] = IGNORE_INDEX
        sections = [[(first + shift, last + shift)] for first, last in sample.sections]
        weights = _section_weights(tokens_of_spans(offsets, text, sections), labels != IGNORE_INDEX)

        input_ids = tokens.input_ids.repeat_interleave(repeats)
        prefix_length = int(repeats[:prefix_length].sum())
        limit = self.settings.max_length
        if prefix_length > limit:
            raise DataError(
                f"{sample.record_id}: image and prompt need {prefix_length} tokens, `max_length` is {limit}"
            )
        phrase_tokens = phrase_tokens.repeat_interleave(repeats, dim=1)
        self._check_phrases(sample, phrase_tokens)
        positions = self.positions(input_ids, tokens.images)
        return LMMInputs(
            input_ids=input_ids[:limit],
            phrase_tokens=phrase_tokens[:, :limit],
            labels=labels.repeat_interleave(repeats)[:limit],
            image_mask=(input_ids == self.image_token_id)[:limit],
            prefix_length=prefix_length,
            images=tokens.images,
            record_id=sample.record_id,
            label_weights=weights.repeat_interleave(repeats)[:limit] if sections else None,
            position_ids=None if positions is None else positions[:, :limit],
        )

    def question(self, sample: Sample) -> LMMInputs:
        """Prepares image and prompt only, up to where the answer starts."""
        return self(replace(sample, text="", phrases=(), sections=()))

    def prompt(self, question: str) -> str:
        """A question as the language model gets it, with one image."""
        return self.template.prefix(self.image_text, 1, [question], [])

    def _prefix(self, sample: Sample) -> str:
        question = self.settings.description_prompt if sample.prompt is None else sample.prompt
        texts = {"prompt": question, "text": sample.text}
        for index, turn in enumerate(sample.turns):
            texts |= {f"prompt of turn {index}": turn.prompt, f"answer of turn {index}": turn.answer}
        try:  # also what tokenizers answer with a TypeError
            for name, text in texts.items():
                check_words(text, name, self._control_words)
        except FieldError as error:
            raise DataError(f"{sample.record_id}: {error}") from error
        end = self._turn_end("earlier turns would run into each other") if sample.turns else ""
        return self.template.prefix(
            self.image_text,
            1 + len(sample.more_images),
            [*(turn.prompt for turn in sample.turns), question],
            [turn.answer + end for turn in sample.turns],
        )

    def _turn_end(self, otherwise: str) -> str:
        end = self.template.turn_end or self.tokenizer.eos_token
        if end is None:
            raise ConfigError(f"the tokenizer has no end token (`eos_token`): {otherwise}")
        return end

    def _check_phrases(self, sample: Sample, phrase_tokens: Tensor) -> None:
        limit = self.settings.max_length
        total, kept = phrase_tokens.sum(1), phrase_tokens[:, :limit].sum(1)
        for index in range(len(sample.phrases)):
            name = f"{sample.record_id}: phrase {index} {sample.phrase_text(index)!r}"
            if total[index] == 0:
                raise PhraseWithoutTokensError(
                    f"{name} has no token; its spans cover white space only, or nothing"
                )
            if kept[index] < total[index]:
                raise PhraseWithoutTokensError(
                    f"{name} keeps {int(kept[index])} of its {int(total[index])} tokens after cutting at "
                    f"`max_length`={limit}; shorten the text or raise `max_length`"
                )


def check_spans(text: str, phrases: Sequence[Phrase], record_id: str) -> None:
    """Makes sure that phrases lie in their text.

    Args:
        text: What the phrases are of.
        phrases: Their spans are character ranges of it.
        record_id: Whose text it is, for the error.

    Raises:
        PhraseNotFoundError: A span lies outside the text, or is empty.
    """
    for index, phrase in enumerate(phrases):
        for start, end in phrase.spans:
            if not 0 <= start < end <= len(text):
                raise PhraseNotFoundError(
                    f"{record_id}: span ({start}, {end}) of phrase {index} lies outside the text "
                    f"of {len(text)} characters, or is empty"
                )


def _section_weights(members: Tensor, learned: Tensor) -> Tensor:
    """Weight of each label: sections count alike, their sum is the number of their labels; others weigh 1.

    Args:
        members: bool ``[S, T]``, tokens of each section.
        learned: bool ``[T]``, tokens with a label.

    Returns:
        float32 ``[T]``.
    """
    weights = torch.ones(members.shape[1], dtype=torch.float32)
    members = members & learned
    sizes = members.sum(1)
    share = float(sizes.sum()) / max(int((sizes > 0).sum()), 1)
    for row, size in zip(members, sizes.tolist(), strict=True):
        if size:
            weights[row] = share / size
    return weights


def itself(value: Tensor) -> Tensor:
    """A tensor that is there already, where one is made on demand elsewhere."""
    return value


class PixelProcessor(LMMProcessor):
    """Image side of our own, for families whose pixels have to be those of their original code, byte for byte.

    Args:
        tokenizer: See :class:`LMMProcessor`.
        image_token_id: See :class:`LMMProcessor`.
        image_side: Side of the vision tower's square input, pixels.
        patch_size: Side of a patch, pixels.
        settings: Prompts and pixels.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_token_id: int,
        image_side: int,
        patch_size: int,
        settings: ProcessorSettings = ProcessorSettings(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(tokenizer, image_token_id=image_token_id, settings=settings)
        self.image_side = image_side
        self.patch_size = patch_size
        self._mean = torch.tensor(settings.image_mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(settings.image_std, dtype=torch.float32).view(3, 1, 1)
        self._pad_rgb = tuple(int(value * 255) for value in settings.image_mean)

    @abstractmethod
    def process_image(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        """Preprocesses an image.

        Args:
            image: RGB, uint8, ``[H, W, 3]``.

        Returns:
            Normalised pixels in the family's layout, float32, and the geometry of the image tokens.
        """

    @abstractmethod
    def prepare_image(self, image: np.ndarray) -> ImageInputs:
        """As :meth:`process_image`, with all that the model wants to know."""

    def tokenise(self, text: str, images: Sequence[np.ndarray]) -> Tokens:
        """See :class:`LMMProcessor`."""
        prepared = tuple(self.prepare_image(image) for image in images)
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        input_ids = torch.tensor(encoding.input_ids, dtype=torch.int64)
        # One image token in the text stands for all of an image's in the sequence.
        repeats = torch.ones_like(input_ids)
        repeats[input_ids == self.image_token_id] = torch.tensor(
            [image.grid.num_tokens for image in prepared]
        )
        return Tokens(input_ids, encoding.offset_mapping, len(text), repeats, prepared)

    def _resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))

    def _normalise(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std

    def denormalise(self, pixel_values: Tensor) -> np.ndarray:
        """The bytes that :meth:`process_image` normalised, exactly (rounding errors are far below half a step).

        Args:
            pixel_values: float32 ``[3, S, S]``, CPU.

        Returns:
            RGB, uint8, ``[S, S, 3]``.
        """
        pixels = (pixel_values * self._std + self._mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
