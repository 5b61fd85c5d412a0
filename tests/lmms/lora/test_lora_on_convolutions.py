"""LoRA on the convolutions of a decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dense_parts import make_dense_case, make_neck, total
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import DetectionHead, SemanticSegHead
from flmm_detseg.lmms.lora.layers import lora_group_of, lora_layers, lora_off
from flmm_detseg.lmms.lora.on_convolutions import add_conv_lora_to_convs, add_head_lora


class Decoder(nn.Module):
    """What decoders hold: plain, dilated, strided, reflecting, depthwise convolutions and norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.aspp = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=d, dilation=d) for d in (1, 3, 6))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect", dilation=(1, 2))
        self.norm = nn.GroupNorm(2, 8)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        x = self.stem(x)
        x = self.depthwise(sum(conv(x) for conv in self.aspp))
        return self.norm(self.down(x)) * self.fixed


@torch.no_grad()
def move_off_zero(module) -> None:
    for layer in lora_layers(module).values():
        for up in layer.lora_B.values():
            up.weight.normal_()


def test_identity_at_the_start_and_every_ungrouped_convolution_adapted():
    plain, adapted = Decoder(), Decoder()
    names = add_conv_lora_to_convs(adapted)
    assert names == ("stem", "aspp.0", "aspp.1", "aspp.2", "down")
    x = torch.randn(2, 3, 16, 20)
    assert torch.equal(plain(x), adapted(x))
    move_off_zero(adapted)
    assert not torch.equal(plain(x), adapted(x))
    with lora_off(adapted):
        assert torch.equal(plain(x), adapted(x))


@pytest.mark.parametrize("name", ["stem", "aspp.1", "aspp.2", "down"])
def test_low_rank_part_is_the_convolution_with_the_same_geometry(name):
    module = Decoder()
    add_conv_lora_to_convs(module, r=2, alpha=6, target=name.replace(".", r"\."))
    move_off_zero(module)
    layer = module.get_submodule(name)
    base, down, up = layer.base_layer, layer.lora_A["conv"], layer.lora_B["conv"]
    x = torch.randn(2, base.in_channels, 16, 20)
    kernel = 6 / 2 * (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(base.weight)
    merged = torch.func.functional_call(base, {"weight": base.weight + kernel}, (x,))
    torch.testing.assert_close(layer(x), merged, rtol=1e-4, atol=1e-4)
    assert layer(x).shape == base(x).shape


def test_only_adapted_convolutions_are_frozen():
    module = Decoder()
    add_conv_lora_to_convs(module, target=r"aspp\.\d", name="decoder")
    module(torch.randn(1, 3, 16, 16)).square().sum().backward()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    expected = {"stem.weight", "stem.bias", "depthwise.weight", "depthwise.bias"}
    expected |= {"down.weight", "down.bias", "norm.weight", "norm.bias"}
    lora = {f"aspp.{i}.lora_{part}.decoder.weight" for i in range(3) for part in "AB"}
    assert trained == expected | lora
    assert {lora_group_of(name) for name in lora} == {"decoder"}
    assert all(p.grad is None for n, p in module.named_parameters() if n not in trained)


def test_every_tensor_gets_a_gradient():
    module = Decoder()
    add_conv_lora_to_convs(module)
    move_off_zero(module)
    module(torch.randn(1, 3, 16, 16)).pow(3).sum().backward()
    assert all(p.grad.any() for n, p in module.named_parameters() if lora_group_of(n))


def test_a_second_group_adds_up_and_base_numbers_stay():
    module = Decoder()
    before = {name: p.clone() for name, p in module.named_parameters()}
    add_conv_lora_to_convs(module, target="aspp.2", name="one")
    add_conv_lora_to_convs(module, target="aspp.1", name="two")
    move_off_zero(module)
    names = {
        name.replace(".base_layer", ""): p
        for name, p in module.state_dict().items()
        if not lora_group_of(name)
    }
    assert names.keys() == before.keys()
    assert all(torch.equal(names[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target="depthwise"), "grouped convolution `depthwise`.*could not be merged"),
        (dict(target="asp.2"), "matches no convolution"),
        (dict(target="norm"), "matches no convolution"),
        (dict(target="["), "no regular expression"),
        (dict(r=0), "`r` is 0"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    module = Decoder()
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        add_conv_lora_to_convs(module, **arguments)
    assert not lora_layers(module)
    assert F.relu(module.stem.weight).requires_grad


def make_heads() -> nn.ModuleDict:
    torch.manual_seed(0)
    names = ("wall", "sky", "tree")
    detection = DetectionHead(make_neck(scales=(2, 1)), names, feat_channels=16, stacked_convs=1)
    return nn.ModuleDict(
        dict(detection=detection, segmentation=SemanticSegHead(make_neck(), names, channels=16))
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("segmentation", {}), ("segmentation", dict(target=r"decoder\.lateral.*")), ("detection", {})],
)
def test_heads_learn_through_low_ranks(name, options):
    plain, adapted = make_heads(), make_heads()
    chosen = add_head_lora(adapted, {name: dict(r=2, alpha=4, **options)})[name]
    assert chosen
    assert all(key.startswith("decoder.") for key in chosen) or not options
    states, batch = make_dense_case()
    losses = adapted[name].loss(states, batch)
    expected = plain[name].loss(states, batch)
    for key, value in losses.items():
        assert torch.equal(value, expected[key]), "nothing changes at the start"
    total(losses).backward()
    ups = {n for n, p in adapted.named_parameters() if ".lora_B." in n}
    assert {lora_group_of(n) for n in ups} == {name}
    graded = {n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    assert ups <= graded
    assert not any(".base_layer." in n for n in graded)
    other = adapted["detection" if name == "segmentation" else "segmentation"]
    assert not lora_layers(other)
    assert all(p.requires_grad for p in other.parameters())


def test_a_head_lora_that_cannot_be_is_named():
    heads = make_heads()
    with pytest.raises(ConfigError, match="'segmentaton' is no head; did you mean `segmentation`"):
        add_head_lora(heads, {"segmentaton": {}})
    with pytest.raises(ConfigError, match=r"`head_lora\.detection` has no key `rank`"):
        add_head_lora(heads, {"detection": dict(rank=4)})
    assert not lora_layers(heads)
