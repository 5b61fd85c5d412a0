"""From a sample to the tensors of an LMM family: prompt, tokens, phrase membership, pixels, patch grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError, PhraseWithoutTokensError
from flmm_detseg.ops.letterbox import (
    best_resolution,
    centre_padding,
    fit_inside,
    fit_longest_side,
    unpadded_grid,
)
from flmm_detseg.ops.spans import tokens_of_spans
from flmm_detseg.structures import ANSWER_TASKS, GridLevel, LMMInputs, PatchGrid, Phrase, Sample
from flmm_detseg.utils.values import FieldError, check_words

PROMPT_TEMPLATES: dict[str, str] = {
    "vicuna": "USER: {image}\n{prompt} ASSISTANT:",
    "mistral": "[INST] {image}\n{prompt} [/INST]",
}
DESCRIPTION_PROMPT = "Please give me a description of the image."
IGNORE_INDEX = -100


@dataclass(frozen=True)
class ProcessorSettings:
    """What a user may choose about prompts and pixels.

    Attributes:
        prompt_template: ``"vicuna"`` or ``"mistral"``.
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
        if self.prompt_template not in PROMPT_TEMPLATES:
            raise ConfigError(
                f"`prompt_template` is {self.prompt_template!r}; known: {sorted(PROMPT_TEMPLATES)}"
            )
        if self.max_length < 1:
            raise ConfigError(f"`max_length` is {self.max_length}; a positive number of tokens is needed")


class LMMProcessor(ABC):
    """Text side of every family; a subclass adds the image side.

    Args:
        tokenizer: Fast tokenizer (character offsets) that knows the image token.
        image_token_id: Id of the image token in the model's config.
        image_side: Side of the vision tower's square input, pixels.
        patch_size: Side of a patch, pixels.
        settings: Prompts and pixels.

    Raises:
        ConfigError: A slow tokenizer, or one whose image token is not the model's.
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
        self.image_side = image_side
        self.patch_size = patch_size
        self.settings = settings
        self._mean = torch.tensor(settings.image_mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(settings.image_std, dtype=torch.float32).view(3, 1, 1)
        self._pad_rgb = tuple(int(value * 255) for value in settings.image_mean)

    def add_end_tokens(self, token_ids: Iterable[int]) -> None:
        """Tokens that end the model's answers beside the tokenizer's own end token; texts may not hold special ones.

        A word or a line break that ends answers as well stays text.
        """
        for token_id in token_ids:
            token = self.tokenizer.added_tokens_decoder.get(token_id)
            if token is not None and token.special:
                self._control_words[token.content] = None

    @abstractmethod
    def process_image(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        """Preprocesses an image.

        Args:
            image: RGB, uint8, ``[H, W, 3]``.

        Returns:
            Normalised pixels in the family's layout, float32, and the geometry of the image tokens.
        """

    def __call__(self, sample: Sample) -> LMMInputs:
        """Prepares one sample.

        Raises:
            ConfigError: The sample is an answer to learn, and the tokenizer has no end token.
            DataError: The image is no RGB uint8 array, or prompt or text hold the image token or a token that ends a
                turn (``</s>``).
            PhraseNotFoundError: A span lies outside the text.
            PhraseWithoutTokensError: A phrase has no token, or lost one because the text was cut at
                ``max_length``.
        """
        image = sample.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(
                f"{sample.record_id}: image is {image.dtype} {image.shape}; uint8 (H, W, 3) RGB is needed"
            )
        prefix = self._prefix(sample)
        check_spans(sample.text, sample.phrases, sample.record_id)
        pixel_values, grid = self.process_image(image)
        if 0 in grid.output_grid:
            raise DataError(
                f"{sample.record_id}: image of {grid.image_size} is too narrow: no image token is left of it"
            )
        full_text = f"{prefix} {sample.text}" if sample.text else prefix
        if sample.text and sample.task in ANSWER_TASKS:
            if self.tokenizer.eos_token is None:
                raise ConfigError("the tokenizer has no end token (`eos_token`): an answer cannot be learned")
            full_text += self.tokenizer.eos_token
        encoding = self.tokenizer(full_text, return_offsets_mapping=True)
        input_ids = torch.tensor(encoding.input_ids, dtype=torch.int64)
        offsets = encoding.offset_mapping
        prefix_length = next((i for i, (_, end) in enumerate(offsets) if end > len(prefix)), len(offsets))
        shift = len(prefix) + 1
        spans = [[(start + shift, end + shift) for start, end in phrase.spans] for phrase in sample.phrases]
        phrase_tokens = tokens_of_spans(offsets, full_text, spans)
        labels = input_ids.clone()
        labels[:prefix_length] = IGNORE_INDEX
        sections = [[(start + shift, end + shift)] for start, end in sample.sections]
        weights = _section_weights(tokens_of_spans(offsets, full_text, sections), labels != IGNORE_INDEX)

        # One image token in the text stands for all of them in the sequence.
        repeats = torch.where(input_ids == self.image_token_id, grid.num_tokens, 1)
        input_ids = input_ids.repeat_interleave(repeats)
        prefix_length += grid.num_tokens - 1
        limit = self.settings.max_length
        if prefix_length > limit:
            raise DataError(
                f"{sample.record_id}: image and prompt need {prefix_length} tokens, `max_length` is {limit}"
            )
        phrase_tokens = phrase_tokens.repeat_interleave(repeats, dim=1)
        self._check_phrases(sample, phrase_tokens)
        return LMMInputs(
            input_ids=input_ids[:limit],
            phrase_tokens=phrase_tokens[:, :limit],
            labels=labels.repeat_interleave(repeats)[:limit],
            image_mask=(input_ids == self.image_token_id)[:limit],
            prefix_length=prefix_length,
            pixel_values=pixel_values,
            grid=grid,
            record_id=sample.record_id,
            label_weights=weights.repeat_interleave(repeats)[:limit] if sections else None,
        )

    def question(self, sample: Sample) -> LMMInputs:
        """Prepares image and prompt only, up to where the answer starts."""
        return self(replace(sample, text="", phrases=(), sections=()))

    def prompt(self, question: str) -> str:
        """A question as the language model gets it, with one image token."""
        return PROMPT_TEMPLATES[self.settings.prompt_template].format(image=self.image_token, prompt=question)

    def _prefix(self, sample: Sample) -> str:
        question = self.settings.description_prompt if sample.prompt is None else sample.prompt
        try:  # also what tokenizers answer with a TypeError
            check_words(question, "prompt", self._control_words)
            check_words(sample.text, "text", self._control_words)
        except FieldError as error:
            raise DataError(f"{sample.record_id}: {error}") from error
        return self.prompt(question)

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


def check_spans(text: str, phrases: Sequence[Phrase], record_id: str) -> None:
    """Makes sure that phrases lie in their text.

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


class LlavaProcessor(LMMProcessor):
    """LLaVA-1.5: longest side resized to the tower's input, centred on a square of the mean colour."""

    def process_image(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        """See :class:`LMMProcessor`; pixels are ``[3, S, S]``."""
        side = self.image_side
        image_size = image.shape[0], image.shape[1]
        resized_size = fit_longest_side(image_size, side)
        top, left = centre_padding(resized_size, (side, side))
        canvas = np.empty((side, side, 3), dtype=np.uint8)
        canvas[:] = self._pad_rgb
        canvas[top : top + resized_size[0], left : left + resized_size[1]] = self._resize(image, resized_size)
        grid = PatchGrid(
            image_size=image_size,
            resized_size=resized_size,
            pad_top=top,
            pad_left=left,
            padded_size=(side, side),
            levels=(GridLevel(side // self.patch_size, side // self.patch_size),),
        )
        return self._normalise(canvas), grid


class LlavaNextProcessor(LMMProcessor):
    """LLaVA-NeXT: the image squashed to a square, then tiles of the image on the best fitting canvas.

    Args:
        tokenizer: See :class:`LMMProcessor`, as all arguments not listed here.
        pinpoints: Canvas sizes ``(H, W)``, multiples of ``image_side``.
        image_token_id: Id of the image token.
        image_side: Side of a tile.
        patch_size: Side of a patch.
        settings: Prompts and pixels.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pinpoints: Sequence[Sequence[int]],
        image_token_id: int,
        image_side: int,
        patch_size: int,
        settings: ProcessorSettings = ProcessorSettings(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(
            tokenizer,
            image_token_id=image_token_id,
            image_side=image_side,
            patch_size=patch_size,
            settings=settings,
        )
        self.pinpoints = tuple((int(height), int(width)) for height, width in pinpoints)
        if not self.pinpoints or any(
            h < 1 or w < 1 or h % image_side or w % image_side for h, w in self.pinpoints
        ):
            raise ConfigError(f"`pinpoints` {self.pinpoints} must be multiples of the tile side {image_side}")

    def process_image(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        """See :class:`LMMProcessor`; pixels are ``[1 + tiles, 3, S, S]``, tiles row by row.

        The grid's maps are those of the un-padded fine level, so nothing is left to crop.
        """
        side, base = self.image_side, self.image_side // self.patch_size
        image_size = image.shape[0], image.shape[1]
        canvas_size = best_resolution(image_size, self.pinpoints)
        resized_size = fit_inside(image_size, canvas_size)
        top, left = centre_padding(resized_size, canvas_size)
        # The canvas is black before normalisation, unlike LLaVA-1.5's mean colour.
        canvas = np.zeros((*canvas_size, 3), dtype=np.uint8)
        canvas[top : top + resized_size[0], left : left + resized_size[1]] = self._resize(image, resized_size)
        tile_rows, tile_cols = canvas_size[0] // side, canvas_size[1] // side
        tiles = self._normalise(canvas).view(3, tile_rows, side, tile_cols, side).permute(1, 3, 0, 2, 4)
        squashed = self._normalise(self._resize(image, (side, side)))
        rows, cols = unpadded_grid(image_size, (tile_rows * base, tile_cols * base))
        grid = PatchGrid(
            image_size=image_size,
            resized_size=resized_size,
            pad_top=0,
            pad_left=0,
            padded_size=resized_size,
            levels=(GridLevel(base, base), GridLevel(rows, cols, newline_cols=1)),
        )
        return torch.cat([squashed[None], tiles.reshape(-1, 3, side, side)]), grid
