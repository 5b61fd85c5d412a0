"""DeepSeek-VL (transformers' ``DeepseekVL...`` and ``DeepseekVLHybrid...``): letterboxed images, one tower or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridProcessor,
    DeepseekVLProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from flmm_detseg.compat.transformers5 import own_features, tower_body
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, PatchGrid

_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class DeepseekVL(HubFamily):
    """The image in the middle of a square; a SigLIP tower without a class token, a token a patch.

    Source: DeepSeek-VL (arXiv 2403.05525).
    """

    model_class = DeepseekVLForConditionalGeneration
    config_class = DeepseekVLConfig
    processor_class = DeepseekVLProcessor
    image_text = "<image_placeholder>"
    template = ChatTemplate(
        first=f"{_SYSTEM}\n\nUser: {{image}}{{prompt}}\n\nAssistant:",
        later="User: {prompt}\n\nAssistant:",
        image_join="",
    )

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
            parts=self._parts(),
            windows=decoder_windows(text),
            lora_targets={"vision": self._vision_targets(), "projector": {"all-linear": None}},
        )

    def _parts(self) -> dict[str, tuple[str, ...]]:
        return {
            "vision": ("model.vision_model",),
            "llm": ("model.language_model",),
            "projector": ("model.aligner",),
        }

    def _vision_targets(self) -> Mapping[str, tuple[str, ...] | None]:
        return LEAVES

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`."""
        side = self.config.vision_config.image_size
        return (3, side, side)

    def fit_image(self, processor: ProcessorMixin, image: Image.Image) -> Image.Image:
        """See :class:`HubFamily`.

        Transformers' resize misses the frame by a pixel where ``int(n * (side / n)) < side`` (one size in nine at 1024
        pixels), and the model then fails: such an image comes in the right size.
        """
        side, least = self._frame(processor)
        longest = max(image.size)
        if int(longest * (side / longest)) == side:
            return image
        width, height = (max(int(length / longest * side), least) for length in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _frame(self, processor: ProcessorMixin) -> tuple[int, int]:
        """Side of the square that the image is put into, and the least side of the image in it."""
        return processor.image_processor.size["height"], processor.image_processor.min_size

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`."""
        side, least = self._frame(processor)
        cells = self.facts.vision.grid
        assert cells is not None  # the tower sees one size
        level = GridLevel(*cells)
        found: list[tuple[Tensor, PatchGrid, dict[str, Tensor]]] = []
        for index, size in enumerate(sizes):
            longest = max(size)
            exact = int(longest * (side / longest)) == side
            height, width = (
                max(int(length * (side / longest) if exact else length / longest * side), least)
                for length in size
            )
            pads = (side - height) // 2, (side - width) // 2
            grid = PatchGrid(size, (height, width), *pads, (side, side), (level,))
            further = self._further(outputs, index)
            found.append((outputs["pixel_values"][index : index + 1], grid, further))
        return found

    def _further(self, outputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        return {}

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return tower_body(model.model.vision_model).encoder.layers

    def unread(self, model: PreTrainedModel, vision_layers: Sequence[int]) -> Sequence[nn.Module]:
        """See :class:`Family`; the pooling head, where the tower has one."""
        tower = tower_body(model.model.vision_model)
        return (tower.head,) if getattr(tower, "use_head", False) else ()

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        states = model.model.vision_model(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states.last_hidden_state]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        return list(model.model.aligner(torch.stack([found.states for found in features])))

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`."""
        return [part.T.unflatten(1, self.facts.vision.grid) for part in states]


class DeepseekVLHybrid(DeepseekVL):
    """A second tower, SAM's, sees the same square in 1024 pixels; the projector joins both towers' features.

    Vision maps are the first tower's.
    """

    # The second tower's states come by replaced methods of its modules while it runs.
    one_at_a_time = True
    model_class = DeepseekVLHybridForConditionalGeneration
    config_class = DeepseekVLHybridConfig
    processor_class = DeepseekVLHybridProcessor

    def _parts(self) -> dict[str, tuple[str, ...]]:
        return {
            "vision": ("model.vision_model", "model.high_res_vision_model"),
            "llm": ("model.language_model",),
            "projector": ("model.aligner", "model.high_res_vision_neck", "model.high_res_vision_proj"),
        }

    def _vision_targets(self) -> Mapping[str, tuple[str, ...] | None]:
        qkv = ("q_proj", "k_proj", "v_proj", "qkv")
        return {"qkv": qkv, "attention": (*qkv, "out_proj", "proj"), "all-linear": None}

    def _frame(self, processor: ProcessorMixin) -> tuple[int, int]:
        return processor.image_processor.high_res_size["height"], processor.image_processor.min_size

    def _further(self, outputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        return {"high_res_pixel_values": outputs["high_res_pixel_values"][index : index + 1]}

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`; both towers' channels, the first tower's first."""
        large = torch.cat([image.further["high_res_pixel_values"] for image in images])
        second = own_features(model.model.get_high_res_image_features(large))
        return [
            Features(torch.cat([found.states, further], dim=-1))
            for found, further in zip(super().features(model, images), second, strict=True)
        ]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        states = torch.stack([found.states for found in features])
        first, second = states.tensor_split([self.facts.vision.channels], dim=-1)
        return list(model.model.aligner(first, second))


@MODELS.register_module()
class DeepseekVLAdapter(LMM):
    """DeepSeek-VL 1.3B. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = DeepseekVL


@MODELS.register_module()
class DeepseekVLHybridAdapter(LMM):
    """DeepSeek-VL 7B. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = DeepseekVLHybrid
