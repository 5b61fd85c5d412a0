"""What differs between families of LMMs. Everything else is done once, in :mod:`flmm_detseg.lmms.lmm`.

Adding a family = one module in ``lmms/families`` with a :class:`Family` and an adapter class that names it. The
conformance suite (``tests/lmms/conformance``) compares it with the model's own forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel, ProcessorMixin

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower
from flmm_detseg.lmms.processors import LMMProcessor, ProcessorSettings
from flmm_detseg.structures import ImageInputs, LMMInputs

# Last names of linears by preset of a LoRA group's `target`; None for every linear.
LEAVES: Mapping[str, tuple[str, ...] | None] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    "all-linear": None,
}


@dataclass(frozen=True)
class VisionFacts:
    """The vision tower.

    Attributes:
        num_layers: Blocks; hidden states are 0 (embeddings) to ``num_layers``.
        channels: Width.
        patch_size: Side of a patch, pixels of the view.
        grid: ``(rows, cols)`` of patches of the view of the whole image; None where it follows the image.
    """

    num_layers: int
    channels: int
    patch_size: int
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class LMMFacts:
    """Sizes and places of one model.

    Attributes:
        num_layers: L, decoder layers.
        num_heads: Query heads of a layer.
        hidden_size: d, width of the language model.
        vision: The tower.
        parts: Where ``"vision"``, ``"llm"`` and ``"projector"`` are within the model (paths of submodules). Where one
            is inside another, the longer path counts.
        num_levels: Maps that each attention head gives, see :attr:`PatchGrid.stack`.
        windows: By layer type of the decoder, the number of positions a token looks back; None: all. Empty for a
            decoder whose layers are all alike. A decoder that takes one mask although it has a window has the type "".
        axes: Of rotary positions.
        image_attention: ``"causal"``, or ``"both"``: tokens of one image see each other.
        row_layers: Decoder layers whose attention is read unless a config names others; None: all that have rows.
            Layers with a window do not attend to an image that is further back.
        rowless_layers: Decoder layers without softmax attention (convolution, linear attention, state space). They
            have no attention rows, and they read the tokens that lie before a token in its row whatever a mask says:
            samples of such a model never share a row.
        lora_targets: Per part the linears of each preset, where they are called otherwise than in :data:`LEAVES`.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    vision: VisionFacts
    parts: Mapping[str, tuple[str, ...]]
    num_levels: int = 1
    windows: Mapping[str, int | None] = field(default_factory=dict)
    axes: int = 1
    image_attention: str = "causal"
    row_layers: tuple[int, ...] | None = None
    rowless_layers: tuple[int, ...] = ()
    lora_targets: Mapping[str, Mapping[str, tuple[str, ...] | None]] = field(default_factory=dict)


def decoder_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """What :attr:`LMMFacts.windows` says of a decoder of transformers.

    Args:
        config: The language model's.

    Returns:
        Window in tokens by layer type (``""`` for layers of one type), None for layers that look at everything; empty
        where no layer has a window.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None:
        return {}
    if not kinds:
        return {"": window}
    found = {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}
    return found if any(found.values()) else {}


@dataclass(frozen=True)
class Features:
    """A tower's features of one image.

    Attributes:
        states: What the projector reads, ``[views, n, D]`` or ``[n, D]``.
        deep: Further features that go into the decoder's first layers, ``[num_tokens, d]`` each.
    """

    states: Tensor
    deep: tuple[Tensor, ...] = ()


class Family(ABC):
    """One family of transformers' models, for one config.

    Args:
        config: The model's.

    Attributes:
        one_at_a_time: Transformers' own pass of the tower changes the model while it runs: one thread at a time may run
            it.
    """

    one_at_a_time: ClassVar[bool] = False
    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PretrainedConfig]]
    template: ClassVar[ChatTemplate]

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def facts(self) -> LMMFacts:
        """Sizes and places."""

    def check_config(self, source: str) -> None:  # noqa: B027 (nothing to refuse)
        """Refuses a config that this family cannot follow; before weights are read.

        Args:
            source: Names the model in messages.

        Raises:
            ConfigError: Names the field.
        """

    def check_model(self, model: PreTrainedModel, source: str) -> None:  # noqa: B027 (as above)
        """As :meth:`check_config`, where the built model has to be looked at; may be on the meta device."""

    @abstractmethod
    def load_processor(self, pretrained: str, settings: ProcessorSettings) -> LMMProcessor:
        """The processor of a folder in hub layout, or of a hub name."""

    @abstractmethod
    def build_processor(self, source: Any, settings: ProcessorSettings) -> LMMProcessor:
        """The processor around a tokenizer (or the family's own processor) that is there already."""

    def fit_processor(self, processor: ProcessorMixin, source: str) -> None:
        """Makes transformers' own processor fit the model, before both are written for other programs.

        Args:
            processor: Read from the folder the model came from; is changed.
            source: Names that folder in messages.

        Raises:
            ConfigError: It cannot be made to fit.
        """
        if not hasattr(processor, "image_processor"):
            raise ConfigError(f"{source}: {type(processor).__name__} is no processor of images and text")

    # The tower.

    @abstractmethod
    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Blocks of the vision tower in order: hidden state i is what block i - 1 gave."""

    def unread(self, model: PreTrainedModel, vision_layers: Sequence[int]) -> Sequence[nn.Module]:
        """Modules that no gradient can reach when only these hidden states are read beside what the projector reads."""
        return ()

    @abstractmethod
    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """Runs the tower.

        Args:
            model: The transformers model.
            images: Their tensors are on the model's device, pixels in its dtype.

        Returns:
            Per image what the projector reads.
        """

    @abstractmethod
    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """From features to image tokens, per image ``[num_tokens, d]`` in sequence order."""

    @abstractmethod
    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """Lays a hidden state of the tower out.

        Args:
            states: What a block gave for all these images.
            images: In the order in which :meth:`features` got them.

        Returns:
            Per image ``[D, rows, cols]`` of the view of the whole image.
        """

    def grouped_tower(self, model: PreTrainedModel) -> IsolatedTower | None:
        """The tower as the background cache reads it; None: this family's cannot be read in groups."""
        return None

    # The language model.

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        """The decoder of the language model, with ``layers``; its last state is normalised."""
        return model.model.language_model

    def new_cache(self, model: PreTrainedModel) -> Cache:
        """An empty cache of what the decoder keeps of one sequence (or, for plain keys and values, of several)."""
        # Without the config: a cache for sliding windows would drop the image's keys.
        return DynamicCache()

    def decoder_arguments(self, features: Sequence[Features], image_mask: Tensor) -> dict[str, Any]:
        """What the decoder gets beside embeddings, positions and mask.

        Args:
            features: Of all images of a batch, row after row.
            image_mask: bool ``[R, T]``.

        Returns:
            Arguments by name; none unless the family says otherwise.
        """
        return {}

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """A sample's images as the model's own ``forward`` and ``generate`` want them, beside ``input_ids``."""
        inputs = {"pixel_values": torch.cat([image.pixel_values for image in item.images])}
        for name in item.images[0].further:
            inputs[name] = torch.cat([image.further[name] for image in item.images])
        return inputs
