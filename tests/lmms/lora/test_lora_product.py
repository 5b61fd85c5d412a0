"""Penalty on and merging of the LoRA product, against the product written out."""

from __future__ import annotations

import pytest
import torch
from tiny import make_batch, mixed_samples, tiny_llava
from torch import nn

from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.lmms.lora.on_convolutions import add_conv_lora_to_convs
from flmm_detseg.lmms.lora.product import lora_product_penalty, merge_lora
from flmm_detseg.structures import CaptureSpec

LORA = dict(
    vision=dict(r=4, alpha=8),
    llm=dict(r=2, alpha=6),
    second=dict(part="llm", r=3, alpha=3, target=r"layers\.0\..*q_proj"),
)


@torch.no_grad()
def move_off_zero(module) -> None:
    torch.manual_seed(1)
    for layer in lora_layers(module).values():
        for up in layer.lora_B.values():
            up.weight.normal_(std=0.2)


def explicit_penalty(module) -> torch.Tensor:
    total = torch.zeros(())
    for layer in lora_layers(module).values():
        change = sum(
            layer.lora_alpha[g]
            / layer.r[g]
            * layer.lora_B[g].weight.flatten(1)
            @ layer.lora_A[g].weight.flatten(1)
            for g in layer.lora_A
        )
        total = total + (change**2).sum()
    return total


def grads(loss, module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad]))


def test_penalty_equals_the_product_written_out():
    adapter = tiny_llava(lora=LORA)
    assert lora_product_penalty(adapter) == 0
    move_off_zero(adapter)
    ours, theirs = adapter.lora_penalty(), explicit_penalty(adapter)
    assert theirs > 1
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(grads(ours, adapter), grads(theirs, adapter), strict=True):
        torch.testing.assert_close(one, other)


def test_penalty_of_convolutions_is_the_distance_of_the_kernels():
    head = nn.Sequential(nn.Conv2d(6, 8, 3, dilation=2, padding=2), nn.Conv2d(8, 4, 1))
    add_conv_lora_to_convs(head, r=2, alpha=3)
    move_off_zero(head)
    before = [layer.base_layer.weight.detach().clone() for layer in lora_layers(head).values()]
    penalty = lora_product_penalty(head)
    merge_lora(head)
    distance = sum(((conv.weight - old) ** 2).sum() for conv, old in zip(head, before, strict=True))
    torch.testing.assert_close(penalty.detach(), distance.detach())


def test_penalty_without_lora_is_an_error():
    with pytest.raises(ConfigError, match="no LoRA layer"):
        lora_product_penalty(tiny_llava())


def test_a_merged_lmm_says_the_same_without_lora():
    adapter = tiny_llava(lora=LORA)
    move_off_zero(adapter)
    names = [name for name, _ in tiny_llava().named_parameters()]
    inputs = make_batch(adapter, mixed_samples()).inputs
    with torch.no_grad():
        wanted = adapter.encode(inputs, CaptureSpec(logits=True)).logits
        with adapter.base_mode():
            base = adapter.encode(inputs, CaptureSpec(logits=True)).logits
    assert adapter.merge_lora() == 3 * 3 + 4 * 3
    assert [name for name, _ in adapter.named_parameters()] == names
    assert not adapter.lora_groups
    assert adapter.frozen
    found = adapter.encode(inputs, CaptureSpec(logits=True)).logits
    for one, other, old in zip(found, wanted, base, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (other - old).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="no LoRA layer"):
        adapter.merge_lora()


def test_conv_lora_is_not_merged():
    adapter = tiny_llava(lora=dict(llm=dict(r=2), vision=dict(r=2, kind="conv_lora")))
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    with pytest.raises(ConfigError, match="'vision' is Conv-LoRA.*no weight to merge"):
        adapter.merge_lora()
    assert all(torch.equal(p, before[name]) for name, p in adapter.named_parameters())


def test_a_merge_that_rounding_would_spoil_is_refused():
    adapter = tiny_llava(dtype="bfloat16", lora=dict(llm=dict(r=2, target=r"layers\.[01]\..*q_proj")))
    *_, layer = lora_layers(adapter.model).values()
    with torch.no_grad():
        # The change swallows the base weight's digits, then the base takes most of it back.
        layer.lora_A["llm"].weight.fill_(64.0)
        layer.lora_B["llm"].weight.fill_(64.0)
        change = layer.scaling["llm"] * layer.lora_B["llm"].weight @ layer.lora_A["llm"].weight
        layer.base_layer.weight.copy_(-change * 1.004)
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    with pytest.raises(RunError, match=r"layers.1.*bfloat16; merge a float32 model \(nothing was changed\)"):
        adapter.merge_lora()
    assert all(torch.equal(p, before[name]) for name, p in adapter.named_parameters())
