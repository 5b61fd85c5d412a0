"""LLaVA-NeXT (transformers' ``LlavaNextForConditionalGeneration``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.clip_family import ClipFamily
from flmm_detseg.lmms.family import Features
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.processors import PixelProcessor, ProcessorSettings, itself
from flmm_detseg.lmms.weights.loading import load_tokenizer
from flmm_detseg.ops.letterbox import best_resolution, centre_padding, fit_inside, unpadded_grid
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid


class LlavaNextProcessor(PixelProcessor):
    """LLaVA-NeXT: the image squashed to a square, then tiles of the image on the best fitting canvas.

    Args:
        tokenizer: See :class:`PixelProcessor`, as all arguments not listed here.
        pinpoints: Canvas sizes ``(H, W)``, multiples of ``image_side``.
        image_token_id: Id of the image token.
        image_side: Side of a tile.
        patch_size: Side of a patch.
        settings: Prompts and pixels.

    Raises:
        ConfigError: No canvas, or one that tiles do not fill.
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
        """See :class:`PixelProcessor`; pixels are ``[1 + tiles, 3, S, S]``, tiles row by row.

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

    def prepare_image(self, image: np.ndarray) -> ImageInputs:
        """See :class:`PixelProcessor`."""
        pixels, grid = self.process_image(image)
        return ImageInputs(pixels, grid, partial(itself, pixels[0]))


class LlavaNext(ClipFamily):
    """A coarse view and fine tiles; the stack holds all coarse channels, then all fine ones."""

    model_class = LlavaNextForConditionalGeneration
    config_class = LlavaNextConfig
    num_levels = 2

    def build_processor(
        self, source: PreTrainedTokenizerBase | str, settings: ProcessorSettings
    ) -> LlavaNextProcessor:
        """See :class:`ClipFamily`."""
        return LlavaNextProcessor(
            load_tokenizer(source) if isinstance(source, str) else source,
            pinpoints=self.config.image_grid_pinpoints,
            image_token_id=self.config.image_token_id,
            image_side=self.config.vision_config.image_size,
            patch_size=self.config.vision_config.patch_size,
            settings=settings,
        )

    def _views(self, image: ImageInputs) -> Tensor:
        return image.pixel_values

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`; newline tokens are put in by transformers."""
        inner = model.model
        states = inner.multi_modal_projector(torch.cat([found.states for found in features]))
        tokens, _ = inner.pack_image_features(
            states.split([len(found.states) for found in features]),
            torch.tensor([image.grid.image_size for image in images]),
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=inner.image_newline,
        )
        return tokens

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`."""
        return {
            "pixel_values": pad_sequence([image.pixel_values for image in item.images], batch_first=True),
            "image_sizes": torch.tensor([image.grid.image_size for image in item.images]),
        }


@MODELS.register_module()
class LlavaNextAdapter(LMM):
    """LLaVA-NeXT. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = LlavaNext
