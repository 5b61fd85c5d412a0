"""What the Qwen-VL families share: native resolution, M-RoPE, a merger inside the tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from flmm_detseg.compat.transformers5 import image_token_types
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid


class QwenFamily(HubFamily):
    """Images at their own aspect, squashed to multiples of a token's side; tokens are 2 x 2 patches.

    Positions have three axes (time, row, column): an image's tokens stand where they are in the image, and the text
    after it continues from the image's longer side.

    Attributes:
        projectors: Paths of the mergers.
    """

    image_text = "<|vision_start|><|image_pad|><|vision_end|>"
    reserved = ("<|placeholder|>", "<|video_pad|>")
    projectors: tuple[str, ...] = ("model.visual.merger",)

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(vision.depth, vision.hidden_size, vision.patch_size, grid=None),
            parts={
                "vision": ("model.visual",),
                "llm": ("model.language_model",),
                "projector": self.projectors,
            },
            windows=decoder_windows(text),
            axes=3,
            lora_targets={
                "vision": {"qkv": ("qkv",), "attention": ("qkv", "proj"), "all-linear": None},
                "projector": {"all-linear": None},
                "llm": LEAVES,
            },
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`; a patch of as many frames as the tower reads at once."""
        vision = self.config.vision_config
        return (vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,)

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`."""
        shapes = outputs["image_grid_thw"]
        pixels = outputs["pixel_values"].split(shapes.prod(-1).tolist())
        vision = self.config.vision_config
        found = []
        for size, shape, values in zip(sizes, shapes, pixels, strict=True):
            rows, cols = shape[1:].tolist()
            resized = rows * vision.patch_size, cols * vision.patch_size
            level = GridLevel(rows // vision.spatial_merge_size, cols // vision.spatial_merge_size)
            grid = PatchGrid(size, resized, 0, 0, resized, (level,), view=(rows, cols))
            found.append((values, grid, {"image_grid_thw": shape[None]}))
        return found

    def positions(self, input_ids: Tensor, images: Sequence[ImageInputs]) -> Tensor:
        """See :class:`HubFamily`."""
        is_image = input_ids == self.config.image_token_id
        positions = torch.zeros(3, len(input_ids), dtype=torch.int64)
        token = following = 0
        for image in images:
            level = image.grid.levels[0]
            start = token + int(is_image[token:].nonzero()[0])
            text = following + torch.arange(start - token)
            positions[:, token:start] = text
            following += start - token
            end = start + level.num_tokens
            places = torch.stack(
                [
                    torch.zeros(level.num_tokens, dtype=torch.int64),
                    torch.arange(level.rows).repeat_interleave(level.cols),
                    torch.arange(level.cols).repeat(level.rows),
                ]
            )
            positions[:, start:end] = following + places
            following += max(level.rows, level.cols)
            token = end
        positions[:, token:] = following + torch.arange(len(input_ids) - token)
        return positions

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`."""
        return {**super().own_inputs(item), **image_token_types(self.model_class, item.image_mask)}

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return model.model.visual.blocks

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`; done by the merger already."""
        return [found.states for found in features]

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; inside the tower, the patches of a token follow each other."""
        side = self.config.vision_config.spatial_merge_size
        maps = []
        counts = [image.grid.view_grid[0] * image.grid.view_grid[1] for image in images]
        for part, image in zip(states.split(counts), images, strict=True):
            rows, cols = (length // side for length in image.grid.view_grid)
            tokens = part.unflatten(0, (rows * cols, side * side))
            order = self.token_order(rows, cols)
            if order is not None:
                tokens = torch.empty_like(tokens).index_copy(0, order.to(tokens.device), tokens)
            tokens = tokens.view(rows, cols, side, side, -1)
            maps.append(tokens.permute(4, 0, 2, 1, 3).reshape(-1, rows * side, cols * side))
        return maps

    def token_order(self, rows: int, cols: int) -> Tensor | None:
        """In which order the tower's blocks have the tokens of an image, int64 ``[rows * cols]``; None: row by row."""
        return None
