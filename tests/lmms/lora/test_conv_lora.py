"""Conv-LoRA: identity at the start, the formula written out, the gate, class token and grids, balance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import make_batch, mixed_samples, tiny_llava
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lora.conv_lora import ConvLoRADown
from flmm_detseg.ops.load_balance import load_balance
from flmm_detseg.structures import CaptureSpec

GRID = (3, 5)


def make_down(**changes) -> ConvLoRADown:
    torch.manual_seed(0)
    return ConvLoRADown(nn.Linear(6, 4, bias=False), GRID, **(dict(num_experts=3) | changes))


def written_out(down: ConvLoRADown, x: torch.Tensor) -> torch.Tensor:
    """One image, prefix of one token."""
    h = x @ down.weight.T
    patches = h[1:].T.reshape(1, 4, *GRID)
    chances = (down.gate.weight @ patches.mean((0, 2, 3))).softmax(0)
    total = torch.zeros_like(patches)
    for index in chances.topk(down.top_k).indices.tolist():
        conv, size = down.experts[index], [side * (index + 1) for side in GRID]
        larger = F.interpolate(patches, size, mode="bicubic") if index else patches
        output = F.gelu(F.conv2d(larger, conv.weight, conv.bias, padding=1))
        total = total + chances[index] * (F.interpolate(output, GRID, mode="bicubic") if index else output)
    return torch.cat([h[:1], h[1:] + total[0].flatten(1).T])


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_formula_with_class_token_on_a_grid_that_is_no_square(top_k):
    down = make_down(top_k=top_k)
    x = torch.randn(7, 1 + 15, 6)
    found = down(x)
    for image, expected in zip(found, map(lambda item: written_out(down, item), x), strict=True):
        torch.testing.assert_close(image, expected)
    torch.testing.assert_close(found[:, 0], F.linear(x[:, 0], down.weight))
    without = down(x[:, 1:])
    torch.testing.assert_close(without, found[:, 1:])


def test_experts_look_at_neighbours_and_images_stay_apart():
    down = make_down(top_k=3)
    x = torch.randn(2, 15, 6)
    moved = x.clone()
    moved[0, 0] += 1
    change = (down(moved) - down(x)).abs().amax(-1)
    assert change[0, 1] > 1e-4
    assert change[0, 5] > 1e-4
    assert not change[1].any()


def test_the_task_loss_reaches_the_gate_with_one_expert_each():
    down = make_down(top_k=1)
    down(torch.randn(4, 15, 6)).square().sum().backward()
    assert down.gate.weight.grad.abs().max() > 1e-4
    assert all(p.grad is not None for p in down.parameters())


def test_wrong_tokens_and_routing_are_named():
    with pytest.raises(ConfigError, match="built for 3 x 5 patches"):
        make_down()(torch.randn(1, 15 + 2, 6))
    with pytest.raises(ConfigError, match="`top_k` is 4; 1..3"):
        make_down(top_k=4)


def test_balance_loss_is_least_when_experts_are_used_alike():
    even = torch.eye(4) * 0.4 + 0.15
    assert float(load_balance(even, torch.eye(4))) == pytest.approx(1.0)
    all_to_one = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 4)
    kept = torch.tensor([[1.0, 0, 0, 0]] * 4)
    assert float(load_balance(all_to_one, kept)) == pytest.approx(4 * 0.7)
    logits = torch.tensor([[1.0, 0.0, 0.0]] * 2, requires_grad=True)
    load_balance(logits.softmax(1), torch.tensor([[1.0, 0, 0]] * 2)).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_an_adapter_hands_out_the_balance_of_its_last_pass():
    lora = dict(vision=dict(r=4, kind="conv_lora", num_experts=3, balance_weight=0.5), llm=dict(r=2))
    adapter = tiny_llava(lora=lora).train()
    batch = make_batch(adapter, mixed_samples())
    capture = CaptureSpec(vision_layers=(3,))
    assert adapter.auxiliary_losses() == {}
    adapter.encode(batch.inputs, capture)
    losses = adapter.auxiliary_losses()
    assert list(losses) == ["vision_balance_loss"]
    downs = [m for m in adapter.modules() if isinstance(m, ConvLoRADown)]
    assert len(downs) == 9
    expected = 0.5 * torch.stack([down.balance for down in downs]).mean()
    torch.testing.assert_close(losses["vision_balance_loss"], expected)
    losses["vision_balance_loss"].backward()
    assert all(down.gate.weight.grad.any() for down in downs)
    adapter.encode(batch.inputs[1:2], capture)
    assert adapter.auxiliary_losses()["vision_balance_loss"] != losses["vision_balance_loss"]
    with torch.no_grad(), adapter.base_mode():
        before = adapter.auxiliary_losses()
        adapter.encode(batch.inputs, capture)
        assert adapter.auxiliary_losses() == before
    with torch.no_grad():
        adapter.encode(batch.inputs, capture)
    assert adapter.auxiliary_losses() == {}
    adapter.encode(batch.inputs, capture)
    adapter.eval()
    adapter.encode(batch.inputs, capture)
    assert adapter.auxiliary_losses() == {}


def test_bfloat16_runs_forward_and_backward():
    down = make_down(top_k=2).bfloat16()
    down(torch.randn(2, 16, 6, dtype=torch.bfloat16)).float().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in down.parameters())
