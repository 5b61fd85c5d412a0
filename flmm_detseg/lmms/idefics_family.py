"""What Idefics3 and SmolVLM share: square tiles with words in between, pixel shuffle, the whole image last."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
import transformers
from mmengine.logging import print_log
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.idefics3.image_processing_idefics3 import (
    MAX_IMAGE_SIZE,
    _resize_output_size_rescale_to_max_len,
    _resize_output_size_scale_below_upper_bound,
)

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

# The form of a conversation, without what begins a text.
UTTERANCES = ChatTemplate(
    first="User:{image}{prompt}<end_of_utterance>\nAssistant:",
    later="\nUser: {prompt}<end_of_utterance>\nAssistant:",
    turn_end="<end_of_utterance>",
    image_join="",
)


class IdeficsFamily(HubFamily):
    """The image resized to a long side of the processor's, squashed to a rectangle of square tiles, and after them all
    of it in one tile.

    A word names the place of every tile, so image tokens are no single run. The tower (SigLIP) has no class token; a
    token is a square of its patches. An image of one tile comes without the copy, and its one level stands for both.
    """

    image_text = "<image>"
    reserved = ("<fake_token_around_image>", "<global-img>", "<video>")
    nest_images = True
    # An image of 1 or 3 rows would be taken for one whose channels come first.
    processor_arguments = MappingProxyType({"input_data_format": "channels_last"})

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        side = vision.image_size // vision.patch_size
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(vision.num_hidden_layers, vision.hidden_size, vision.patch_size, (side, side)),
            parts={
                "vision": ("model.vision_model",),
                "llm": ("model.text_model",),
                "projector": ("model.connector",),
            },
            num_levels=2,
            windows=decoder_windows(text),
            lora_targets={"vision": LEAVES, "projector": {"all-linear": None}},
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`; a tile."""
        side = self.config.vision_config.image_size
        return (3, side, side)

    def check_config(self, source: str) -> None:
        """See :class:`Family`."""
        vision, factor = self.config.vision_config, self.config.scale_factor
        side = vision.image_size // vision.patch_size
        if side % factor:
            raise ConfigError(
                f"{source}: scale_factor is {factor}, but a tile has {side} x {side} patches (vision_config image_size "
                f"{vision.image_size}, patch_size {vision.patch_size}); it must divide them"
            )

    def check_model(self, model: PreTrainedModel, source: str) -> None:
        """See :class:`Family`; answers stay those of transformers, wrong or right."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        embeddings = type(model.model.vision_model.embeddings)
        if wrong := wrong_rows(embeddings, side, model.dtype):
            print_log(
                f"{source}: transformers {transformers.__version__} gives patches of this tower wrong positions in "
                f"{str(model.dtype).removeprefix('torch.')}: {wrong} of {side} rows and columns of a tile are those of "
                "a neighbour (its pull request 47133)",
                logger="current",
                level=logging.WARNING,
            )

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`; every view is a whole tile, so the processor's mask of pixels says nothing."""
        vision = self.config.vision_config
        base = vision.image_size // vision.patch_size // self.config.scale_factor
        grids = []
        for size in sizes:
            rows, cols = self._tiles(processor.image_processor, size)
            resized = rows * vision.image_size, cols * vision.image_size
            fine = GridLevel(rows * base, cols * base, tiles=(rows, cols))
            tiled = rows * cols > 1
            levels = (fine, GridLevel(base, base)) if tiled else (fine,)
            stack = (1, 0) if tiled else (0, 0)
            grids.append(
                PatchGrid(size, resized, 0, 0, resized, levels, stack=stack, view=self.facts.vision.grid)
            )
        pixels = outputs["pixel_values"][0].split([grid.num_tokens // base**2 for grid in grids])
        return [(values, grid, {}) for values, grid in zip(pixels, grids, strict=True)]

    def _tiles(self, processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int]:
        """``(rows, cols)`` of tiles of an image: the processor's own choice."""
        if not processor.do_image_splitting:
            return 1, 1
        height, width = size
        if processor.do_resize:
            longest = processor.size["longest_edge"]
            height, width = _resize_output_size_rescale_to_max_len(height, width, max_len=longest)
            height, width = _resize_output_size_scale_below_upper_bound(height, width, max_len=MAX_IMAGE_SIZE)
        side, aspect = processor.max_image_size["longest_edge"], width / height
        # The longer side first; the shorter one follows from what it became.
        if width >= height:
            cols = math.ceil(width / side)
            return math.ceil(int(cols * side / aspect) / side), cols
        rows = math.ceil(height / side)
        return rows, math.ceil(int(rows * side * aspect) / side)

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """See :class:`Family`."""
        return model.model.text_model

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return model.model.vision_model.encoder.layers

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        tiles = [len(image.pixel_values) for image in images]
        states = model.model.vision_model(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states.last_hidden_state.split(tiles)]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        tokens = model.model.connector(torch.cat([found.states for found in features]))
        return [part.flatten(0, 1) for part in tokens.split([len(found.states) for found in features])]

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; an image's last tile shows the whole of it."""
        views = states.split([len(image.pixel_values) for image in images])
        return [tiles[-1].T.unflatten(1, self.facts.vision.grid) for tiles in views]

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`; tiles of one text stand in a row of their own."""
        return {"pixel_values": torch.cat([image.pixel_values for image in item.images])[None]}


@torch.no_grad()
def wrong_rows(embeddings: type[nn.Module], side: int, dtype: torch.dtype) -> int:
    """How many rows (as many columns) of a tile get another row's position from transformers' towers.

    The tower's own arithmetic, whose rounding depends on the version and maybe on the dtype, with a table of positions
    that says where it was looked up.

    Args:
        embeddings: The module that adds positions to patches.
        side: Patches along the side of a tile.
        dtype: Of the model.

    Returns:
        0 to ``side``.
    """
    sizes = SimpleNamespace(hidden_size=2, image_size=side, patch_size=1, num_channels=1)
    with torch.device("cpu"):  # the model may be on the meta device
        own: Any = embeddings(sizes).to(dtype)
        nn.init.zeros_(own.patch_embedding.weight)
        nn.init.zeros_(own.patch_embedding.bias)
        places = torch.arange(side**2)
        own.position_embedding.weight.copy_(torch.stack([places // side, places % side], dim=1))
        found = own(torch.zeros(1, 1, side, side, dtype=dtype), torch.ones(1, side, side, dtype=torch.bool))
        return int((found[0, ::side, 0] != torch.arange(side)).sum())
