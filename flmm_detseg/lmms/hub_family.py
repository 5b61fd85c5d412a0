"""Processors around transformers' own: a new family's text and pixels are those its authors published."""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import Family
from flmm_detseg.lmms.processors import LMMProcessor, ProcessorSettings, Tokens
from flmm_detseg.lmms.weights.loading import remote_code_hint
from flmm_detseg.structures import ImageInputs, PatchGrid
from flmm_detseg.utils.hub import check_folder

_WORD = re.compile(r"<[^<>\s]+>")


class HubFamily(Family):
    """A family whose images and texts transformers' own processor prepares.

    Attributes:
        processor_class: Of transformers.
        image_text: What stands for one image in the text that it is given.
        reserved: Words that the processor takes for something else than text.
        processor_arguments: Further arguments of its call.
        nest_images: It wants a list of images for each text, not a list of all images.
    """

    processor_class: ClassVar[type[ProcessorMixin]]
    image_text: ClassVar[str]
    reserved: ClassVar[tuple[str, ...]] = ()
    processor_arguments: ClassVar[Mapping[str, Any]] = {}
    nest_images: ClassVar[bool] = False

    def load_processor(self, pretrained: str, settings: ProcessorSettings) -> HubProcessor:
        """See :class:`Family`."""
        folder = check_folder(pretrained)
        try:
            processor = self.processor_class.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise anything here
            raise ConfigError(f"{folder}: the processor cannot be read: {remote_code_hint(error)}") from error
        return self.build_processor(processor, settings)

    def build_processor(self, source: ProcessorMixin | str, settings: ProcessorSettings) -> HubProcessor:
        """See :class:`Family`; ``source`` is transformers' processor, or the folder or hub name of one."""
        if isinstance(source, str):
            return self.load_processor(source, settings)
        if not isinstance(source, self.processor_class):
            raise ConfigError(
                f"`tokenizer` is a {type(source).__name__}; this family needs its {self.processor_class.__name__}"
            )
        processor = HubProcessor(self, source, settings)
        # Sizes that do not fit are found now, not by the first image.
        processor.tokenise(processor.prompt("a"), [np.full((64, 64, 3), 128, np.uint8)])
        return processor

    def arguments(self, processor: ProcessorMixin) -> Mapping[str, Any]:
        """Further arguments of a processor's call; :attr:`processor_arguments` unless the family says otherwise."""
        return self.processor_arguments

    def fit_image(self, processor: ProcessorMixin, image: Image.Image) -> Image.Image:
        """An image as transformers' processor can read it; the same image, as a rule."""
        return image

    @property
    @abstractmethod
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of the pixels of a view (or patch): all axes of ``pixel_values`` but the first."""

    @abstractmethod
    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """Splits a processor's outputs by image.

        Args:
            processor: Transformers' own.
            outputs: Of one text.
            sizes: Original ``(H, W)`` of its images.

        Returns:
            Per image its pixels, its geometry, and what the model's own forward wants beside.
        """

    def positions(self, input_ids: Tensor, images: Sequence[ImageInputs]) -> Tensor | None:
        """Rotary positions of a sequence, int64 ``[A, T]``; None: 0..T-1."""
        return None


class HubProcessor(LMMProcessor):
    """Prepares samples with a processor of transformers.

    Args:
        family: Of the model.
        processor: Transformers' own.
        settings: Prompts; mean and deviation of pixels are the processor's.

    Raises:
        ConfigError: See :class:`LMMProcessor`; or the tokenizer does not know the words of the family's chats, or
            pixels are not normalised.
    """

    def __init__(self, family: HubFamily, processor: ProcessorMixin, settings: ProcessorSettings) -> None:
        self.family = family
        self.hub = processor
        super().__init__(processor.tokenizer, image_token_id=family.config.image_token_id, settings=settings)
        written = " ".join([self.template.first, self.template.later, family.image_text])
        words = {*_WORD.findall(written)}
        if self.template.turn_end is not None:
            words.add(self.template.turn_end)
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        if unknown := sorted(words - special):
            raise ConfigError(
                f"the tokenizer has no special token for {', '.join(unknown)}, which this family's chats are written "
                "with; use the tokenizer stored with the model"
            )
        self._control_words |= dict.fromkeys([*sorted(words), *family.reserved])
        for name in ("do_normalize", "do_rescale"):
            if getattr(processor.image_processor, name, True) is not True:
                raise ConfigError(f"the image processor has {name}=False; pixels are always normalised here")

    @property
    def template(self) -> ChatTemplate:
        """See :class:`LMMProcessor`."""
        return self.family.template

    @property
    def image_text(self) -> str:
        """See :class:`LMMProcessor`."""
        return self.family.image_text

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """See :class:`LMMProcessor`."""
        ids = super().add_tokens(tokens)
        self.hub = copy.copy(self.hub)
        self.hub.tokenizer = self.tokenizer
        return ids

    def positions(self, input_ids: Tensor, images: Sequence[ImageInputs]) -> Tensor | None:
        """See :class:`LMMProcessor`."""
        return self.family.positions(input_ids, images)

    def tokenise(self, text: str, images: Sequence[np.ndarray]) -> Tokens:
        """See :class:`LMMProcessor`."""
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        pictures = [self.family.fit_image(self.hub, Image.fromarray(image)) for image in images]
        try:
            outputs = self.hub(
                images=[pictures] if self.family.nest_images else pictures,
                text=[text],
                return_offsets_mapping=True,
                return_tensors="pt",
                **self.family.arguments(self.hub),
            )
        except (RuntimeError, ValueError) as error:
            # Processors refuse images of extreme shapes in their own ways.
            raise DataError(f"images of {sizes} cannot be read by this LMM: {error}") from error
        offsets = [tuple(offset) for offset in outputs["offset_mapping"][0].tolist()]
        input_ids = outputs["input_ids"][0]
        try:
            split = self.family.split_images(self.hub, outputs, sizes)
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the processor's outputs are not what this family reads ({error}); use the processor stored with the "
                "model"
            ) from error
        prepared = tuple(
            ImageInputs(pixels, grid, partial(self._view, image, grid), further)
            for image, (pixels, grid, further) in zip(images, split, strict=True)
        )
        for image in prepared:
            if tuple(image.pixel_values.shape[1:]) != self.family.pixel_shape:
                raise ConfigError(
                    f"the processor makes views of {tuple(image.pixel_values.shape[1:])}, the model reads "
                    f"{self.family.pixel_shape}; use the processor stored with the model"
                )
        expected = sum(image.grid.num_tokens for image in prepared)
        found = int((input_ids == self.image_token_id).sum())
        if found != expected:
            raise ConfigError(
                f"the processor writes {found} image tokens for images of {sizes}, {expected} were expected; the "
                "folder's processor does not fit this family"
            )
        length = max((end for _, end in offsets), default=0)
        return Tokens(input_ids, offsets, length, torch.ones_like(input_ids), prepared)

    def _view(self, image: np.ndarray, grid: PatchGrid) -> Tensor:
        """The view of the whole image that vision maps are about, normalised; float32 ``[3, H, W]``."""
        side = self.family.facts.vision.patch_size
        height, width = (count * side for count in grid.view_grid)
        top, left, bottom, right = (
            round(fraction * length)
            for fraction, length in zip(grid.view_fractions, (height, width, height, width), strict=True)
        )
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        resized = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        own = self.hub.image_processor
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.image_mean, own.image_std))
        view = torch.zeros(3, height, width)
        view[:, top:bottom, left:right] = (pixels - mean) / std
        return view
