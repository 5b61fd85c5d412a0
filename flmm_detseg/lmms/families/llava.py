"""LLaVA-1.5 (transformers' ``LlavaForConditionalGeneration``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.clip_family import ClipFamily
from flmm_detseg.lmms.family import Features
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower
from flmm_detseg.lmms.processors import PixelProcessor, ProcessorSettings, itself
from flmm_detseg.lmms.weights.loading import load_tokenizer
from flmm_detseg.ops.letterbox import centre_padding, fit_longest_side, fit_shortest_side
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

# `image_aspect_ratio` of a config.json, in LLaVA's own words: the square in the middle of the image, as CLIP's
# processor cuts it. All else, and nothing, is "pad".
SQUARE = "square"


class LlavaProcessor(PixelProcessor):
    """LLaVA-1.5: longest side resized to the tower's input, centred on a square of the mean colour.

    Attributes:
        crops: LLaVA-v1 instead: shortest side resized to the tower's input, and the square in the middle.
    """

    crops = False

    def process_image(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        """See :class:`PixelProcessor`; pixels are ``[3, S, S]``."""
        side = self.image_side
        image_size = image.shape[0], image.shape[1]
        if self.crops:
            return self._crop(image)
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

    def _crop(self, image: np.ndarray) -> tuple[Tensor, PatchGrid]:
        side = self.image_side
        image_size = image.shape[0], image.shape[1]
        resized_size = fit_shortest_side(image_size, side)
        top, left = ((length - side) // 2 for length in resized_size)
        grid = PatchGrid(
            image_size=image_size,
            resized_size=resized_size,
            pad_top=-top,
            pad_left=-left,
            padded_size=(side, side),
            levels=(GridLevel(side // self.patch_size, side // self.patch_size),),
        )
        pixels = self._resize(image, resized_size)[top : top + side, left : left + side]
        return self._normalise(pixels), grid

    def prepare_image(self, image: np.ndarray) -> ImageInputs:
        """See :class:`PixelProcessor`."""
        pixels, grid = self.process_image(image)
        return ImageInputs(pixels, grid, partial(itself, pixels))


class Llava(ClipFamily):
    """One square view, one grid level."""

    model_class = LlavaForConditionalGeneration
    config_class = LlavaConfig

    def build_processor(
        self, source: PreTrainedTokenizerBase | str, settings: ProcessorSettings
    ) -> LlavaProcessor:
        """See :class:`ClipFamily`."""
        processor = LlavaProcessor(
            load_tokenizer(source) if isinstance(source, str) else source,
            image_token_id=self.config.image_token_id,
            image_side=self.config.vision_config.image_size,
            patch_size=self.config.vision_config.patch_size,
            settings=settings,
        )
        processor.crops = self._crops
        return processor

    @property
    def _crops(self) -> bool:
        return getattr(self.config, "image_aspect_ratio", None) == SQUARE

    def _views(self, image: ImageInputs) -> Tensor:
        return image.pixel_values[None]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        return list(model.model.multi_modal_projector(torch.cat([found.states for found in features])))

    def grouped_tower(self, model: PreTrainedModel) -> IsolatedTower:
        """See :class:`Family`."""
        if self._crops:
            raise ConfigError(
                "this LMM sees the middle of an image only (config.json: image_aspect_ratio 'square'); the background "
                "cache divides whole images into regions"
            )
        return IsolatedTower.of(model.model.vision_tower, self.config.vision_feature_layer)

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`."""
        return {"pixel_values": torch.stack([image.pixel_values for image in item.images])}


@MODELS.register_module()
class LlavaAdapter(LMM):
    """LLaVA-1.5. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Llava
