"""What transformers 4 and 5 call otherwise: both forms are built here, so each test says the same under either."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from flmm_detseg.compat import transformers5 as compat

TOWER = CLIPVisionConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2
)


def in_form(tower: nn.Module, nested: bool) -> nn.Module:
    """The same modules inside of another one, as in transformers 4, or not, as in 5."""
    body = compat.tower_body(tower)
    if nested == (body is not tower):
        return tower
    owner = nn.Module() if nested else tower
    for name, child in list(body.named_children()):
        delattr(body, name)
        owner.add_module(name, child)
    if nested:
        tower.vision_model = owner
    else:
        del tower.vision_model
    return tower


@pytest.mark.parametrize("nested", [True, False])
def test_a_tower_is_the_same_in_both_forms(nested):
    torch.manual_seed(0)
    tower = in_form(CLIPVisionModel(TOWER), nested)
    assert hasattr(tower, "vision_model") == nested
    body = compat.tower_body(tower)
    assert len(body.encoder.layers) == 2
    assert body.embeddings.num_patches == 4
    model = nn.ModuleDict({"lmm": nn.ModuleDict({"tower": tower, "projector": nn.Linear(8, 8)})})
    names = [name for name, _ in model.named_parameters()]
    stored = compat.stored_names(model, names)
    assert list(stored) == names
    assert stored["lmm.projector.weight"] == "lmm.projector.weight"
    inside = [stored[name] for name in names if name.startswith("lmm.tower.")]
    assert len(inside) == len(names) - 2
    assert all(name.startswith("lmm.tower.vision_model.") for name in inside)
    assert "lmm.tower.vision_model.encoder.layers.1.mlp.fc2.bias" in inside
    assert len(set(stored.values())) == len(names)


@torch.no_grad()
def test_hooks_by_which_hidden_states_are_collected_only_record():
    tower = CLIPVisionModel(TOWER).eval()
    tower(torch.zeros(1, 3, 4, 4), output_hidden_states=True)
    own = [hook for module in tower.modules() for hook in module._forward_hooks.values()]
    assert all(map(compat.only_records, own))
    assert not compat.only_records(lambda module, arguments, output: 2 * output)


@pytest.mark.parametrize("nested", [True, False])
def test_a_file_of_either_release_names_what_is_here(nested):
    tower = in_form(CLIPVisionModel(TOWER), nested)
    model = nn.ModuleDict({"tower": tower, "projector": nn.Linear(8, 8)})
    inner, plain = "tower.vision_model.encoder.layers.1", "tower.encoder.layers.1"
    here = inner if nested else plain
    for name in (inner, plain):
        found = compat.names_here(model, name)
        assert found[0] == name
        assert [one for one in found if one in dict(model.named_modules())] == [here]
    assert compat.names_here(model, "projector") == ["projector"]


@pytest.mark.parametrize(
    ("stated", "whole", "text", "ties"),
    [
        (None, True, False, False),  # a file of transformers 4, whose class says otherwise in 5
        (None, False, True, True),
        (False, False, True, True),  # 4 states its class's default beside the text
        (True, True, False, True),  # a file of 5
        (False, True, False, False),
    ],
)
def test_tables_are_tied_as_the_file_says(stated, whole, text, ties):
    fields = {} if stated is None else {"tie_word_embeddings": stated}

    @dataclass
    class NewConfig:
        tie_word_embeddings: bool = whole

        def get_text_config(self, decoder: bool):
            return SimpleNamespace(tie_word_embeddings=text)

    class OldConfig:
        tie_word_embeddings = whole

    new, old = NewConfig(**fields), OldConfig()
    compat.keep_ties(new, fields)
    assert new.tie_word_embeddings is ties
    compat.keep_ties(old, fields)
    assert old.tie_word_embeddings is whole


def test_a_type_of_models_has_two_spellings():
    for stated in ("lfm2-vl", "lfm2_vl"):
        assert all(compat.is_of_type({"model_type": stated}, kind) for kind in ("lfm2-vl", "lfm2_vl"))
    assert not compat.is_of_type({"model_type": "lfm2"}, "lfm2_vl")
    assert not compat.is_of_type({}, "lfm2_vl")
    assert not compat.is_of_type({"model_type": ["lfm2_vl"]}, "lfm2_vl")


def test_names_of_other_modules_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    assert compat.stored_names(model, ["0.weight", "0.bias"]) == {"0.weight": "0.weight", "0.bias": "0.bias"}


class OldBlock(nn.Module):
    def forward(self, states: Tensor, attention_mask: Tensor, causal_attention_mask: Tensor):
        assert causal_attention_mask is None
        return (states + (0 if attention_mask is None else attention_mask),)


class NewBlock(nn.Module):
    def forward(self, states: Tensor, attention_mask: Tensor, **kwargs):
        assert not kwargs
        return states + (0 if attention_mask is None else attention_mask)


@pytest.mark.parametrize("block", [OldBlock(), NewBlock()])
def test_a_block_of_either_form_runs(block):
    states, mask = torch.ones(1, 2, 3), torch.full((1, 2, 3), 2.0)
    assert torch.equal(compat.run_tower_block(block, states), states)
    assert torch.equal(compat.run_tower_block(block, states, mask), states + 2)


@torch.no_grad()
def test_a_masked_block_does_not_see():
    torch.manual_seed(0)
    config = CLIPVisionConfig(**{**TOWER.to_dict(), "attn_implementation": "sdpa"})
    config._attn_implementation = "sdpa"
    block = CLIPEncoderLayer(config).eval()
    states = torch.randn(1, 3, 8)
    apart = torch.full((1, 1, 3, 3), torch.finfo().min)
    apart[..., :2, :2] = apart[..., 2, 2] = 0
    found = compat.run_tower_block(block, states, apart)
    torch.testing.assert_close(found[:, :2], compat.run_tower_block(block, states[:, :2]))
    assert not torch.allclose(found, compat.run_tower_block(block, states))


def test_tokens_of_a_merging_tower():
    tokens, deep = torch.ones(2, 3), [torch.zeros(2, 3)]
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(8, 3), pooler_output=tokens)
    for given, further in ((tokens, []), ((tokens, deep), deep), (output, [])):
        found, layers = compat.merged_tokens(given)
        assert found is tokens
        assert layers == further
    output = SimpleNamespace(pooler_output=tokens, deepstack_features=tuple(deep))
    assert compat.merged_tokens(output) == (tokens, deep)


def test_features_are_the_last_state_of_an_output():
    states = torch.ones(1, 2)
    assert compat.own_features(states) is states
    assert compat.own_features(BaseModelOutputWithPooling(last_hidden_state=states)) is states


class OldDecoder(nn.Module):
    def forward(self, inputs_embeds: Tensor, past_key_values=None):
        return past_key_values


class NewDecoder(nn.Module):
    def forward(self, inputs_embeds: Tensor, cache=None, mm_token_type_ids=None):
        return cache


@pytest.mark.parametrize("decoder", [OldDecoder(), NewDecoder()])
def test_stored_keys_arrive(decoder):
    past = DynamicCache()
    assert decoder(torch.zeros(1), **compat.cache_argument(decoder, past)) is past


def test_token_types_are_given_to_models_that_take_them():
    mask = torch.tensor([False, True])
    assert compat.image_token_types(OldDecoder, mask) == {}
    ((name, types),) = compat.image_token_types(NewDecoder, mask).items()
    assert (name, types.tolist(), types.dtype) == ("mm_token_type_ids", [[0, 1]], torch.int64)


def llama() -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=5,
        rope_theta=500.0,
    )
    config._attn_implementation = "sdpa"
    return config


def test_the_base_of_rotary_frequencies():
    assert compat.rope_theta(llama()) == 500
    assert compat.rope_theta(SimpleNamespace(rope_theta=7.0)) == 7
    assert compat.rope_theta(SimpleNamespace(rope_parameters={"rope_theta": 8.0})) == 8


@torch.no_grad()
def test_layers_run_on_after_stored_keys():
    """With the mask and the cache that this module makes, a layer in steps gives what the whole decoder gives."""
    torch.manual_seed(0)
    model = LlamaModel(llama()).eval()
    (layer,) = model.layers
    assert isinstance(layer, LlamaDecoderLayer)
    embeds = torch.randn(2, 5, 8)
    expected = model(inputs_embeds=embeds).last_hidden_state
    past, found = DynamicCache(), []
    for start, end in ((0, 2), (2, 4), (4, 5)):
        places = torch.arange(start, end)[None].expand(2, -1)
        part, seen = embeds[:, start:end], torch.ones(2, end, dtype=torch.bool)
        mask = compat.causal_mask(model.config, part, seen, past, places)
        rotary = model.rotary_emb(part, places)
        states = layer(
            part, attention_mask=mask, position_embeddings=rotary, **compat.cache_argument(layer, past)
        )
        found.append(model.norm(states))
    torch.testing.assert_close(torch.cat(found, dim=1), expected)


def test_the_cache_of_convolutions_is_the_models_own():
    config = Lfm2Config(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=5, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    cache = compat.hybrid_cache(config, torch.bfloat16, torch.device("cpu"))
    assert cache.get_seq_length() == 0
    keys = torch.ones(1, 1, 3, 4)
    cache.update(keys, keys, 1)
    assert cache.get_seq_length() == 3


def test_sam2_has_an_image_processor():
    made = compat.sam2_image_processor()(size={"height": 8, "width": 8})
    assert type(made).__name__.startswith("Sam2ImageProcessor")
    assert dict(made.size) == {"height": 8, "width": 8}
