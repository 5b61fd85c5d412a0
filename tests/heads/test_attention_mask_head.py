"""Masks straight from attention: a mean of maps, smoothed and cut; nothing is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from scipy import ndimage
from tiny import make_sample, tiny_llava

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import AttentionMaskHead, PhraseGroundingHead
from flmm_detseg.heads.attention_mask_head import gaussian
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.structures import CaptureSpec, GroundingBatch


def test_smoothing_is_scipys():
    maps = torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(0))
    for sigma in (0.4, 0.7, 2.0):
        theirs = [
            ndimage.gaussian_filter(one, sigma, mode="nearest", radius=max(1, round(4 * sigma)))
            for one in maps.numpy()
        ]
        np.testing.assert_allclose(gaussian(maps, sigma).numpy(), np.stack(theirs), rtol=1e-5, atol=1e-6)
    assert torch.equal(gaussian(maps, 0), maps)
    assert gaussian(maps[:0], 1.0).shape == (0, 9, 14)


def test_the_mask_begins_at_a_share_of_the_range():
    maps = torch.zeros(1, 2, 1, 4)
    maps[0, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])  # of sum 1
    maps[0, 1, 0] = torch.tensor([0.01, 0.02, 0.03, 0.04])  # the same shares: each head counts alike
    logits = AttentionMaskHead(2, smoothing=0, threshold=0.5)(maps)
    torch.testing.assert_close(logits[0, 0], torch.tensor([-8.0, -8 / 3, 8 / 3, 8.0]))
    later = AttentionMaskHead(2, smoothing=0, threshold=0.8)(maps)
    assert (later > 0).tolist() == [[[False, False, False, True]]]
    # Nothing to point at is no mask.
    assert (AttentionMaskHead(2)(torch.full((1, 2, 3, 3), 0.1)) < 0).all()


def test_a_batch_is_its_stacks_and_nothing_has_weights():
    head = AttentionMaskHead(4)
    generator = torch.Generator().manual_seed(0)
    stacks = [
        torch.rand(count, 4, *size, generator=generator)
        for count, size in ((2, (5, 6)), (0, (5, 6)), (3, (7, 4)))
    ]
    for ours, stack in zip(head.forward_grouped(stacks, 1), stacks, strict=True):
        assert torch.equal(ours, head(stack))
    assert list(head.parameters()) == []


@pytest.mark.parametrize("wrong", [dict(smoothing=-1), dict(threshold=0.0), dict(threshold=1.0)])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AttentionMaskHead(4, **wrong)


@torch.no_grad()
def test_padding_is_left_out_before_the_mean():
    lmm = tiny_llava()
    sample = make_sample(0, image_size=(30, 90))
    item = lmm.prepare(sample)
    states = lmm.encode([item], CaptureSpec(attention=True))
    head = PhraseGroundingHead(
        AttentionMaskHead(lmm.attention_channels), None, lmm.num_layers, lmm.hidden_size
    )
    (logits,) = head.coarse_logits(states.attention, GroundingBatch([sample], [item]))
    rows, cols = item.grid.crop_window(item.grid.output_grid)
    assert logits.shape[1] < item.grid.output_grid[0]
    assert torch.equal(logits, head.mask_head(states.attention[0][:, :, rows, cols]))


def config(**head):
    return Config(
        dict(
            model=dict(
                type="GroundingLMM",
                lmm=dict(type="LlavaAdapter", pretrained="data/models/tiny_llava"),
                heads=dict(phrase=dict(type="PhraseGroundingHead", sam=None, **head)),
            )
        )
    )


def test_a_model_with_nothing_to_train_needs_no_checkpoint():
    model = model_from_config(config(mask_head=dict(type="AttentionMaskHead")), device="cpu")
    assert not any(weight.requires_grad for weight in model.parameters())
    (found,) = model.predict([make_sample(0)])
    assert found.masks.shape == (len(make_sample(0).phrases), *make_sample(0).image_size)
    assert found.masks.any()
    with pytest.raises(CheckpointError, match="heads are untrained"):
        model_from_config(
            config(mask_head=dict(type="UNetHead", base_channels=8, num_stages=2)), device="cpu"
        )


def test_text_prompts_have_to_be_trained():
    sam = dict(type="SAMRefiner", checkpoint="data/models/tiny_sam")
    with pytest.raises(ConfigError, match="use_text"):
        model_from_config(_with_sam(sam), device="cpu")
    model = model_from_config(_with_sam(dict(sam, use_text=False)), device="cpu")
    assert not any(weight.requires_grad for weight in model.parameters())
    (found,) = model.predict([make_sample(0)])
    assert found.refined is not None


def _with_sam(sam):
    made = config(mask_head=dict(type="AttentionMaskHead"))
    made.model.heads.phrase.update(sam=sam, text_dim=64)
    return made
