"""Masks and mask logits of many phrases in little memory: bits, and maps that are enlarged on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BITS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class LogitMaps:
    """Logits of the K masks of an image as a network gave them, and the way to the image's size.

    A mask of a 4096 x 4096 image takes 64 MB as logits; SAM's own map of it 256 KB.

    Attributes:
        maps: float32 ``[K, h, w]``.
        image_size: ``(H, W)`` that :meth:`enlarge` gives.
        square: Side of the padded square that the maps cover (SAM); None where they cover the image.
        input_size: ``(H, W)`` of the image inside that square, top left.
        channels: Maps that the network gave for a mask. Interpolation runs over as many, because torch rounds one
            and three channels differently.
    """

    maps: Tensor
    image_size: tuple[int, int]
    square: int | None = None
    input_size: tuple[int, int] | None = None
    channels: int = 1

    def __len__(self) -> int:
        return len(self.maps)

    def enlarge(self, chosen: slice = slice(None)) -> Tensor:
        """Logits at image size.

        Args:
            chosen: Masks that are wanted.

        Returns:
            float32 ``[k, H, W]``, bilinear, the same as ``Sam.postprocess_masks`` gives for all at once.
        """
        maps = self.maps[chosen].float()
        if not len(maps):
            return maps.new_zeros(0, *self.image_size)
        maps = maps[:, None].expand(-1, self.channels, -1, -1)
        if self.square is not None:
            assert self.input_size is not None
            maps = _bilinear(maps, (self.square, self.square))[
                ..., : self.input_size[0], : self.input_size[1]
            ]
        elif tuple(maps.shape[-2:]) == tuple(self.image_size):
            return maps[:, 0]
        return _bilinear(maps, self.image_size)[:, 0]

    def unpadded(self) -> Tensor:
        """The maps over the image alone, at their own resolution: ``[K, h, w]``, at least one row and column."""
        if self.square is None:
            return self.maps
        assert self.input_size is not None
        shares = [side / self.square for side in self.input_size]
        rows, cols = (max(1, round(n * share)) for n, share in zip(self.maps.shape[-2:], shares, strict=True))
        return self.maps[:, :rows, :cols]

    def cpu(self) -> Self:
        """A copy on the CPU."""
        return replace(self, maps=self.maps.cpu())


@dataclass(frozen=True)
class PackedMasks:
    """K masks of an image, a bit a pixel.

    Attributes:
        bits: uint8 ``[K, ceil(H * W / 8)]``, row after row, the first pixel in the highest bit (``numpy.packbits``).
        size: ``(H, W)``.
    """

    bits: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.bits)

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """From bool ``[K, H, W]``, on its device."""
        size = (masks.shape[-2], masks.shape[-1])
        flat = masks.reshape(len(masks), size[0] * size[1])
        if flat.device.type == "cpu":
            return cls(torch.from_numpy(np.packbits(flat.numpy(), axis=1)), size)
        octets = F.pad(flat.to(torch.uint8), (0, -flat.shape[1] % 8))
        octets = octets.view(len(flat), octets.shape[1] // 8, 8)
        return cls((octets * octets.new_tensor(_BITS)).sum(-1, dtype=torch.uint8), size)

    def unpack(self, chosen: slice = slice(None)) -> Tensor:
        """Bool ``[k, H, W]`` of the wanted masks."""
        bits, pixels = self.bits[chosen], self.size[0] * self.size[1]
        if bits.device.type == "cpu":
            # A byte of 0 or 1 is a bool already.
            flat = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=pixels)).view(torch.bool)
        else:
            flat = (bits[..., None] & bits.new_tensor(_BITS)).ne(0).flatten(1)[:, :pixels]
        return flat.reshape(len(bits), *self.size)

    def only(self, kept: Tensor) -> PackedMasks:
        """The same masks, empty where ``kept`` (bool ``[K]``) is False."""
        return replace(self, bits=self.bits * kept[:, None])

    def cpu(self) -> PackedMasks:
        """A copy on the CPU."""
        return replace(self, bits=self.bits.cpu())

    @classmethod
    def join(cls, parts: Sequence[PackedMasks]) -> PackedMasks:
        """Masks of one image that were made in parts."""
        return replace(parts[0], bits=torch.cat([part.bits for part in parts]))


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
