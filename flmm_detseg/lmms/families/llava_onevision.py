"""LLaVA-OneVision (transformers' ``LlavaOnevisionForConditionalGeneration``): one view, then tiles shrunk to fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.capture.tower import tower_states
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.ops.letterbox import best_resolution, fit_inside, unpadded_grid
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

_TILING = "anyres_max_"
# Larger maps are shrunk, as transformers does it; a little too large is not.
_SLACK = 1.1


class LlavaOnevision(HubFamily):
    """The image squashed to a square, then tiles of it without their padding, a newline after each row of tokens.

    Where the tiles have more tokens than nine squares (as the config has it), their map is made smaller. Of several
    images in a prompt, each is one square. A SigLIP tower, without a class token.

    Source: LLaVA-OneVision (arXiv 2408.03326).
    """

    model_class = LlavaOnevisionForConditionalGeneration
    config_class = LlavaOnevisionConfig
    processor_class = LlavaOnevisionProcessor
    image_text = "<image>"
    reserved = ("<placeholder>", "<video>")
    nest_images = True
    # Transformers asks the tower for all of its states, and replaces methods of its modules to get them.
    one_at_a_time = True
    template = ChatTemplate(
        first="<|im_start|>user {image}\n{prompt}<|im_end|><|im_start|>assistant\n",
        later="<|im_start|>user \n{prompt}<|im_end|><|im_start|>assistant\n",
        answer_lead="",
        turn_end="<|im_end|>",
        image_join="",
    )

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(
                vision.num_hidden_layers, vision.hidden_size, vision.patch_size, (self._base, self._base)
            ),
            parts={
                "vision": ("model.vision_tower",),
                "llm": ("model.language_model",),
                "projector": ("model.multi_modal_projector",),
            },
            num_levels=2,
            windows=decoder_windows(text),
        )

    @property
    def _base(self) -> int:
        """Side of a view in patches."""
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`."""
        side = self.config.vision_config.image_size
        return (3, side, side)

    def check_config(self, source: str) -> None:
        """See :class:`Family`."""
        strategy, ratio = self.config.vision_feature_select_strategy, self.config.vision_aspect_ratio
        layer = self.config.vision_feature_layer
        if strategy != "full" or not isinstance(layer, int):
            raise ConfigError(
                f"{source}: vision_feature_layer is {layer!r} and vision_feature_select_strategy {strategy!r}; one "
                "layer and 'full' are needed: the tower has no class token"
            )
        if not ratio.removeprefix(_TILING).isdecimal():
            raise ConfigError(f"{source}: vision_aspect_ratio is {ratio!r}; '{_TILING}9' or alike is needed")

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`."""
        side = self.config.vision_config.image_size
        found: list[tuple[Tensor, PatchGrid, dict[str, Tensor]]] = []
        for size, pixels in zip(sizes, outputs["pixel_values"], strict=True):
            coarse = GridLevel(self._base, self._base, tail=1 if len(sizes) > 1 else 0)
            if len(sizes) > 1:
                grid = PatchGrid(size, (side, side), 0, 0, (side, side), (coarse,), stack=(0, 0))
                found.append((pixels[:1], grid, {}))
                continue
            canvas = best_resolution(size, self.config.image_grid_pinpoints)
            tiles = canvas[0] // side, canvas[1] // side
            resized = fit_inside(size, canvas)
            fine = GridLevel(*self._fine_grid(size, tiles), newline_cols=1)
            grid = PatchGrid(size, resized, 0, 0, resized, (coarse, fine), view=(self._base, self._base))
            found.append((pixels[: 1 + tiles[0] * tiles[1]], grid, {}))
        return found

    def _fine_grid(self, size: tuple[int, int], tiles: tuple[int, int]) -> tuple[int, int]:
        rows, cols = unpadded_grid(size, (tiles[0] * self._base, tiles[1] * self._base))
        most = int(self.config.vision_aspect_ratio.removeprefix(_TILING)) * self._base**2
        ratio = math.sqrt(rows * cols / most)
        return (int(rows // ratio), int(cols // ratio)) if ratio > _SLACK else (rows, cols)

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return tower_body(model.model.vision_tower).encoder.layers

    def unread(self, model: PreTrainedModel, vision_layers: Sequence[int]) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        tower, blocks = tower_body(model.model.vision_tower), self.tower_blocks(model)
        last = max(self._read_layer(len(blocks)), *vision_layers, 0)
        pooling = (tower.head,) if getattr(tower, "use_head", False) else ()
        return [*blocks[last:], tower.post_layernorm, *pooling]

    def _read_layer(self, count: int) -> int:
        """The hidden state that the projector reads; negative layers count from the end."""
        return self.config.vision_feature_layer % (count + 1)

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        blocks = self.tower_blocks(model)
        layer = self._read_layer(len(blocks))
        with tower_states(blocks, (layer,)) as states:
            model.model.vision_tower(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states[layer].split([len(image.pixel_values) for image in images])]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`; transformers shrinks the tiles' map and puts newline tokens in."""
        inner = model.model
        states = inner.multi_modal_projector(torch.cat([found.states for found in features]))
        tokens, _ = inner.pack_image_features(
            states.split([len(found.states) for found in features]),
            torch.tensor([image.grid.image_size for image in images]),
            image_newline=inner.image_newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return tokens

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; an image's first view shows the whole of it."""
        views = states.split([len(image.pixel_values) for image in images])
        return [part[0].T.unflatten(1, (self._base, self._base)) for part in views]

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`."""
        return {
            "pixel_values": pad_sequence([image.pixel_values for image in item.images], batch_first=True),
            "image_sizes": torch.tensor([image.grid.image_size for image in item.images]),
            "batch_num_images": torch.tensor([len(item.images)]),
        }


@MODELS.register_module()
class LlavaOnevisionAdapter(LMM):
    """LLaVA-OneVision. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = LlavaOnevision
