"""Pre-fusion: the question sees the image before the language model does, and a background may shrink to a few tokens.

After LLaVA-Mini (arXiv 2501.03895), so changed that a prefix can still be kept: nothing that the language model reads
up to the end of the background depends on objects or question. Only tokens of the question are replaced, and the
background stands first in the causal layers, so its keys and values in there are kept with those of the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.lmms.capture.packing import visible_rows
from flmm_detseg.lmms.parts.prefusion_layers import GatedLayers
from flmm_detseg.registry import MODELS
from flmm_detseg.store.records import PrefixKV

if TYPE_CHECKING:
    from flmm_detseg.cache.reading.prompt_parts import PromptParts
    from flmm_detseg.lmms.lmm import LMM


@MODELS.register_module()
@dataclass(frozen=True)
class PreFusion:
    """Settings of pre-fusion; :meth:`build` makes the modules for an LMM.

    Attributes:
        num_layers: Causal layers in front of the language model. Untrained they change nothing: their gates are 0.
        compressed_side: C: the language model reads C x C tokens instead of a background's patches (the layers read
            the patches). None: it reads the patches. The compressor has to be trained before use.
        num_heads: Attention heads of the compressor.

    Raises:
        ConfigError: A number cannot be used.
    """

    num_layers: int = 4
    compressed_side: int | None = None
    num_heads: int = 8

    def __post_init__(self) -> None:
        for name in ("num_layers", "compressed_side", "num_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"pre-fusion `{name}` is {value}; at least 1 is needed")

    @property
    def num_compressed(self) -> int:
        """Tokens that replace a background's patches, 0 without compression."""
        return (self.compressed_side or 0) ** 2

    def build(self, lmm: LMM) -> QuestionFusion:
        """The modules, in the LMM's dtype and on its device.

        Args:
            lmm: The LMM whose widths, layers and weights the modules start from.

        Returns:
            New modules: the layers change nothing yet, a compressor is random.

        Raises:
            ConfigError: A size does not fit the LMM.
        """
        compressor = None
        if self.compressed_side is not None:
            assert lmm.vision_grid is not None  # a tower that is read in groups has one
            compressor = Compressor(
                lmm.vision_channels, lmm.vision_grid, self.compressed_side, self.num_heads
            )
        layers = GatedLayers(lmm.part_config("llm"), self.num_layers)
        rotary = layers.rotary_emb.inv_freq
        fusion = QuestionFusion(layers, compressor, self).to(lmm.device, lmm.model.dtype)
        layers.rotary_emb.inv_freq = rotary.to(lmm.device)
        return fusion


class Compressor(nn.Module):
    """C x C learned queries look at the vision features of a background; they depend on nothing else.

    One attention layer, no residual and no MLP: keys are the normed features with their place in the image, values the
    normed features.

    Args:
        channels: D of the features.
        grid: ``(rows, cols)`` of patches.
        side: C. Query (r, c) stands in the middle of its share of the image.
        num_heads: Attention heads.

    Raises:
        ConfigError: The channels cannot be divided, or there are more queries than patches.

    Source: LLaVA-Mini (arXiv 2501.03895), query-based compression.
    """

    patch_places: Tensor
    query_places: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], side: int, num_heads: int) -> None:
        super().__init__()
        if channels % 4 or channels % num_heads:
            raise ConfigError(
                f"the compressor needs vision channels ({channels}) that 4 and `num_heads` ({num_heads}) divide"
            )
        if side > min(grid):
            raise ConfigError(f"`compressed_side` is {side}; the image has {grid[0]} x {grid[1]} patches")
        self.queries = nn.Parameter(torch.randn(side * side, channels) * 0.02)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.register_buffer("patch_places", sincos_places(grid, grid, channels), persistent=False)
        self.register_buffer("query_places", sincos_places(grid, (side, side), channels), persistent=False)

    def forward(self, features: Tensor, indices: Tensor) -> Tensor:
        """Compresses one background.

        Args:
            features: ``[n, D]``.
            indices: Its patches, int64 ``[n]``.

        Returns:
            ``[C * C, D]``; ``[0, D]`` for no patch.
        """
        if not len(indices):
            return features
        values = self.norm(features)
        keys = values + self.patch_places[indices.to(features.device)]
        return self.attention(self.queries + self.query_places, keys, values, need_weights=False)[0]


def sincos_places(grid: tuple[int, int], points: tuple[int, int], channels: int) -> Tensor:
    """Sine-cosine embeddings of points spread evenly over an image, in units of patches.

    Args:
        grid: ``(rows, cols)`` of patches.
        points: ``(rows, cols)`` of points; ``grid`` itself for the centres of the patches 0, 1, ...
        channels: D, divided by 4.

    Returns:
        float32 ``[rows * cols, D]``: half of the channels for the row, half for the column.
    """
    rates = 1e4 ** -(torch.arange(channels // 4, dtype=torch.float32) / (channels // 4))
    axes = [
        (torch.arange(count, dtype=torch.float32) + 0.5) * size / count - 0.5
        for size, count in zip(grid, points, strict=True)
    ]
    angles = [axis[:, None] * rates for axis in axes]
    rows, cols = [torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles]
    return torch.cat([rows.repeat_interleave(points[1], dim=0), cols.repeat(points[0], 1)], dim=1)


class QuestionFusion(nn.Module):
    """Causal layers over ``background | objects | question``; what comes out replaces the question's embeddings.

    System text, answer, and all image tokens reach the language model as they are. Positions are the layers' own: patch
    i is at i with the raster scheme, everything is numbered on with the packed one.

    Args:
        layers: The layers.
        compressor: Of backgrounds; None leaves them.
        settings: What both were built from. Not all of it shows in their tensors, so fingerprints and files name it.
    """

    def __init__(self, layers: GatedLayers, compressor: Compressor | None, settings: PreFusion) -> None:
        super().__init__()
        self.settings = settings
        self.layers = layers
        self.compressor = compressor

    def forward(
        self, backgrounds: Sequence[Tensor], suffixes: Sequence[Tensor], parts: Sequence[PromptParts]
    ) -> list[Tensor]:
        """A batch, each prompt as one sequence (training). Several questions in a prompt do not see each other.

        Args:
            backgrounds: Projected patches ``[n, d]`` of each background.
            suffixes: Embeddings of everything after each prefix, ``[m + 2 + text, d]``.
            parts: The prompts; of rows of several texts as well.

        Returns:
            ``suffixes`` with fused questions.
        """
        read = [_read(suffix, part) for suffix, part in zip(suffixes, parts, strict=True)]
        rows = [torch.cat(pair) for pair in zip(backgrounds, read, strict=True)]
        embeds = pad_sequence(rows, batch_first=True)
        positions = pad_sequence([part.fusion_positions for part in parts], batch_first=True)
        # Padding on the right: no real token attends to it.
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        if any(len(part.questions) > 1 for part in parts):
            mask = visible_rows(
                pad_sequence([_segments(part) for part in parts], batch_first=True, padding_value=-1)
            )
        states = self.layers(embeds, mask.to(embeds.device), positions.to(embeds.device)).last_hidden_state
        return [
            _with_question(suffix, part, state[len(background) : len(row)])
            for suffix, part, state, background, row in zip(
                suffixes, parts, states, backgrounds, rows, strict=True
            )
        ]

    def with_background(self, prefix: PrefixKV, background: Tensor, part: PromptParts) -> PrefixKV:
        """Adds the layers' keys and values of a background, after those of the language model's layers.

        Args:
            prefix: Of the language model.
            background: Projected patches ``[n, d]``.
            part: The prompt.

        Returns:
            Keys and values ``[1, kv_heads, P, head_dim]`` of the language model's layers, then ``[1, kv_heads, n,
            head_dim]`` of the fusion layers.
        """
        decoder = PrefixDecoder(self.layers, nn.Identity())
        if len(background):
            decoder.feed(background[None], part.fusion_positions[: len(background)])
        keys, values = decoder.snapshot()
        return PrefixKV([*prefix.keys, *keys], [*prefix.values, *values])

    def fuse_suffix(self, prefix: PrefixKV, suffix: Tensor, part: PromptParts) -> Tensor:
        """What :meth:`forward` makes of one suffix, after a stored background.

        Args:
            prefix: From :meth:`with_background`.
            suffix: ``[m + 2 + text, d]``.
            part: The prompt.

        Returns:
            ``suffix`` with a fused question, ``[m + 2 + text, d]``.
        """
        keys, values = None, None
        if len(part.background):
            count = len(self.layers.layers)
            keys, values = prefix.keys[-count:], prefix.values[-count:]
        decoder = PrefixDecoder(self.layers, nn.Identity(), keys, values)
        states = decoder.feed(_read(suffix, part)[None], part.fusion_positions[len(part.background) :])
        return _with_question(suffix, part, states[0])


def _read(suffix: Tensor, part: PromptParts) -> Tensor:
    """Objects and questions of a suffix, ``[m + questions, d]``; separators and answers left out."""
    text = len(part.objects) + 2
    return torch.cat(
        [suffix[1 : text - 1], *(suffix[text + start : text + end] for start, end in part.questions)]
    )


def _segments(part: PromptParts) -> Tensor:
    """What each token that is read belongs to: 0 the image, 1, 2, ... the questions; int64 ``[n + m + questions]``."""
    sizes = [len(part.background) + len(part.objects), *(end - start for start, end in part.questions)]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def _with_question(suffix: Tensor, part: PromptParts, states: Tensor) -> Tensor:
    text = len(part.objects) + 2
    pieces, done, read = [], 0, len(part.objects)
    for start, end in part.questions:
        pieces += [suffix[done : text + start], states[read : read + end - start]]
        done, read = text + end, read + end - start
    return torch.cat([*pieces, suffix[done:]])
