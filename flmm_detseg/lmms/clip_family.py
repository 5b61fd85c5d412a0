"""What LLaVA-1.5 and LLaVA-NeXT share: where things are, a CLIP tower with a class token, our own pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.family import Family, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.processors import PixelProcessor, ProcessorSettings
from flmm_detseg.lmms.weights.loading import load_normalisation, load_tokenizer
from flmm_detseg.structures import ImageInputs


class ClipFamily(Family):
    """A LLaVA of transformers: CLIP tower, two-layer projector, decoder."""

    num_levels = 1

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
                "vision": ("model.vision_tower",),
                "llm": ("model.language_model",),
                "projector": ("model.multi_modal_projector",),
            },
            num_levels=self.num_levels,
            windows=decoder_windows(text),
        )

    def check_config(self, source: str) -> None:
        """See :class:`Family`."""
        vision = self.config.vision_config
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if not (isinstance(side, int) and isinstance(patch, int) and 0 < patch <= side):
            raise ConfigError(
                f"{source}: vision_config has image_size {side!r} and patch_size {patch!r}; two whole numbers are "
                "needed, the patch not larger than the image"
            )
        count = vision.num_hidden_layers
        wrong = [layer for layer in self._read_layers() if not -count - 1 <= layer <= count]
        if wrong:
            raise ConfigError(
                f"{source}: vision_feature_layer names {wrong}; the tower has hidden states 0..{count} "
                f"(-1..{-count - 1})"
            )

    def check_model(self, model: PreTrainedModel, source: str) -> None:
        """See :class:`Family`."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        count = self._tower_tokens(model)
        if count is not None and count != side * side + 1:
            raise ConfigError(
                f"{source}: the vision tower ({vision.model_type}) gives {count} tokens, its image of "
                f"{vision.image_size} pixels has {side} x {side} patches of {vision.patch_size}; one token a patch "
                "and one class token before them are needed, as CLIP's towers have. Use an LMM with a CLIP tower"
            )
        strategy = self.config.vision_feature_select_strategy
        if strategy != "default":
            raise ConfigError(
                f"{source}: vision_feature_select_strategy must be 'default' (config.json says {strategy!r}): the "
                "class token is no image patch"
            )

    def _tower_tokens(self, model: PreTrainedModel) -> int | None:
        """Tokens of the tower for one image; None where nothing can be run (meta device)."""
        tower, side = model.model.vision_tower, self.config.vision_config.image_size
        for name, module in tower.named_modules():
            if name.endswith("embeddings.position_embedding") and isinstance(module, nn.Embedding):
                return module.num_embeddings
        if model.device.type == "meta":
            return None
        with torch.no_grad():
            image = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
            return tower(image).last_hidden_state.shape[1]

    def load_processor(self, pretrained: str, settings: ProcessorSettings) -> PixelProcessor:
        """See :class:`Family`."""
        mean, std = load_normalisation(pretrained, self.config)
        settings = replace(settings, image_mean=mean, image_std=std)
        return self.build_processor(load_tokenizer(pretrained), settings)

    @abstractmethod
    def build_processor(
        self, source: PreTrainedTokenizerBase | str, settings: ProcessorSettings
    ) -> PixelProcessor:
        """See :class:`Family`; ``source`` is a tokenizer, or the folder or hub name of one."""

    def fit_processor(self, processor: ProcessorMixin, source: str) -> None:
        """See :class:`Family`; tries it on one image."""
        if not (hasattr(processor, "image_processor") and hasattr(processor, "patch_size")):
            raise ConfigError(f"{source}: {type(processor).__name__} is no processor of images and text")
        vision = self.config.vision_config
        side = vision.image_size
        processor.patch_size = vision.patch_size
        processor.vision_feature_select_strategy = self.config.vision_feature_select_strategy
        # The class token, which every tower that an adapter accepts puts before its patches.
        processor.num_additional_image_tokens = 1
        images = processor.image_processor
        images.size = {"shortest_edge": side}
        images.crop_size = {"height": side, "width": side}
        if (pinpoints := getattr(self.config, "image_grid_pinpoints", None)) is not None:
            images.image_grid_pinpoints = pinpoints
        try:
            inputs = processor(
                images=np.zeros((side, side, 3), np.uint8),
                text=f"{processor.image_token} a",
                return_tensors="pt",
            )
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{source}: transformers' processor cannot be used: {error}") from error
        found = int((inputs.input_ids == self.config.image_token_id).sum())
        least = (side // vision.patch_size) ** 2
        if found < least or tuple(inputs.pixel_values.shape[-2:]) != (side, side):
            raise ConfigError(
                f"{source}: transformers' processor makes {found} image tokens (id {self.config.image_token_id}) of "
                f"an image of {side} x {side} pixels, the model needs {least} or more; mend its image token"
            )

    def _read_layers(self) -> list[int]:
        read = self.config.vision_feature_layer
        return [read] if isinstance(read, int) else list(read)

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return tower_body(model.model.vision_tower).encoder.layers

    def unread(self, model: PreTrainedModel, vision_layers: Sequence[int]) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        blocks = self.tower_blocks(model)
        # Negative layers count from the end.
        last = max(layer % (len(blocks) + 1) for layer in (*self._read_layers(), *vision_layers))
        return [*blocks[last:], tower_body(model.model.vision_tower).post_layernorm]

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        views = [self._views(image) for image in images]
        states = model.model.vision_tower(torch.cat(views), output_hidden_states=True).hidden_states
        # The class token leads.
        read = torch.cat([states[layer][:, 1:] for layer in self._read_layers()], dim=-1)
        return [Features(part) for part in read.split([len(part) for part in views])]

    @abstractmethod
    def _views(self, image: ImageInputs) -> Tensor:
        """The tower's images ``[views, 3, S, S]``, that of the whole image first."""

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`."""
        maps, place = [], 0
        for image in images:
            maps.append(states[place, 1:].T.reshape(-1, *image.grid.view_grid))
            place += len(self._views(image))
        return maps
