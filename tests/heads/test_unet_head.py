from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flmm_detseg.heads import UNetHead
from flmm_detseg.heads.unet_head import Float32Upsample


def make_head(**changes):
    torch.manual_seed(0)
    settings = {"in_channels": 5, "base_channels": 4, "upsample_input": 20, **changes}
    return UNetHead(**settings).eval()


@pytest.mark.parametrize(
    ("grid", "upsample", "expected"),
    [((5, 5), 20, (20, 20)), ((7, 4), 20, (20, 11)), ((24, 30), 20, (24, 30)), ((7, 4), None, (7, 4))],
)
def test_output_size_follows_the_factor_and_floors(grid, upsample, expected):
    head = make_head(upsample_input=upsample)
    assert head(torch.rand(2, 5, *grid)).shape == (2, *expected)


def test_normalisation_makes_the_scale_of_a_channel_irrelevant():
    maps = torch.rand(2, 5, 6, 6)
    scales = torch.rand(2, 5, 1, 1) + 0.1
    with torch.no_grad():
        torch.testing.assert_close(make_head()(maps), make_head()(maps * scales), rtol=1e-4, atol=1e-5)
        raw = make_head(normalize_input=False)
        assert not torch.allclose(raw(maps), raw(maps * scales), atol=1e-3)


def test_a_channel_without_attention_gives_finite_logits():
    maps = torch.rand(1, 5, 6, 6)
    maps[:, 2] = 0
    assert make_head()(maps).isfinite().all()


def test_grouped_sizes_equal_single_calls():
    head = make_head()
    stacks = [torch.rand(k, 5, *size) for k, size in [(2, (6, 6)), (1, (4, 9)), (0, (6, 6)), (3, (6, 6))]]
    calls = []
    head.conv_seg.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        together = head.forward_grouped(stacks)
        assert len(calls) == 2  # one per distinct size
        for ours, stack in zip(together, stacks, strict=True):
            torch.testing.assert_close(ours, head(stack), rtol=1e-5, atol=1e-5)
    assert together[2].shape == (0, 20, 20)


def test_half_precision_weights_interpolate_in_float32(monkeypatch):
    head = make_head().bfloat16()
    seen = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, *a, **k: seen.append(x.dtype) or interpolate(x, *a, **k))
    logits = head(torch.rand(1, 5, 6, 6))
    assert len(seen) == 4  # input and three decoder stages
    assert set(seen) == {torch.float32}
    assert logits.dtype == torch.float32
    assert sum(isinstance(module, Float32Upsample) for module in head.modules()) == 3


def test_mode_switches_return_the_head():
    head = make_head()
    assert head.train() is head
    assert head.eval() is head
    assert not head.decoder.training


def test_normalised_channels_have_the_mass_1():
    head = make_head(upsample_input=None)
    seen = []
    head.encoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(torch.rand(2, 5, 8, 8) + 0.01)
    torch.testing.assert_close(seen[0].sum((-2, -1)), torch.ones(2, 5))


def test_calls_of_a_few_maps_equal_one_call():
    head = make_head()
    stacks = [torch.rand(k, 5, *size) for k, size in [(5, (6, 6)), (1, (4, 9)), (0, (6, 6)), (3, (6, 6))]]
    calls = []
    head.conv_seg.register_forward_hook(lambda _, __, output: calls.append(len(output)))
    with torch.no_grad():
        whole = head.forward_grouped(stacks)
        parts = head.forward_grouped(stacks, 3)
    assert calls == [8, 1, 3, 3, 2, 1]
    for ours, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    head.forward_grouped(stacks, 3)
    assert calls[6:] == [8, 1], "with autograd all go at once"
