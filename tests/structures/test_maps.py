from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flmm_detseg.structures import LogitMaps, PackedMasks, Prediction


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (7, 9)])
def test_packed_masks_are_the_masks(size):
    masks = torch.from_numpy(np.random.default_rng(0).random((5, *size)) < 0.5)
    packed = PackedMasks.pack(masks)
    assert packed.bits.shape == (5, -(-size[0] * size[1] // 8))
    assert torch.equal(packed.unpack(), masks)
    assert packed.unpack().dtype == torch.bool
    assert torch.equal(packed.unpack(slice(1, 3)), masks[1:3])
    parts = [PackedMasks.pack(masks[:2]), PackedMasks.pack(masks[2:2]), PackedMasks.pack(masks[2:])]
    assert torch.equal(PackedMasks.join(parts).unpack(), masks)
    assert PackedMasks.pack(masks[:0]).unpack().shape == (0, *size)


def test_other_devices_pack_the_same_bits(monkeypatch):
    masks = torch.from_numpy(np.random.default_rng(1).random((4, 5, 7)) < 0.5)
    expected = PackedMasks.pack(masks)

    class Elsewhere(torch.Tensor):
        """A tensor that says it is on a GPU: there numpy cannot help."""

        device = torch.device("meta")

    packed = PackedMasks.pack(masks.as_subclass(Elsewhere))
    assert torch.equal(packed.bits.as_subclass(torch.Tensor), expected.bits)
    unpacked = PackedMasks(expected.bits.as_subclass(Elsewhere), (5, 7)).unpack()
    assert torch.equal(unpacked.as_subclass(torch.Tensor), masks)


def test_maps_over_the_image_are_enlarged_to_it():
    maps = LogitMaps(torch.randn(3, 4, 6), (9, 11))
    expected = F.interpolate(maps.maps[:, None], size=(9, 11), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(maps.enlarge(), expected)
    assert torch.equal(maps.enlarge(slice(1, 2)), expected[1:2])
    assert maps.enlarge(slice(0, 0)).shape == (0, 9, 11)
    assert torch.equal(LogitMaps(maps.maps, (4, 6)).enlarge(), maps.maps)


def test_a_prediction_makes_full_sizes_when_asked():
    logits = torch.randn(2, 4, 6)
    packed = PackedMasks.pack(logits > 0)
    coarse = Prediction("a", (8, 12), logits, None, packed, torch.zeros(2, 4), torch.zeros(2)).cpu()
    assert coarse.refined_logits is None
    assert torch.equal(coarse.mask_logits, LogitMaps(logits, (8, 12)).enlarge())
    refined = LogitMaps(logits + 1, (4, 6))
    both = Prediction("a", (4, 6), logits, refined, packed, torch.zeros(2, 4), torch.zeros(2)).cpu()
    assert both.mask_logits is both.refined_logits
    assert torch.equal(both.refined_logits, logits + 1)
    assert torch.equal(both.masks, logits > 0)
    assert both.attention is None
