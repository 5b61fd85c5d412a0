"""LoRA groups: where they go, what they change, what they leave alone, and how they are switched."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import partial

import pytest
import torch
from sam_parts import make_refiner
from tiny import make_batch, make_sample, mixed_samples, tiny_llava, tiny_llava_config, tiny_llava_next

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.lora.groups import LoRAGroup, add_lora, lora_groups
from flmm_detseg.lmms.lora.layers import (
    lora_gradients,
    lora_group_of,
    lora_layers,
    lora_off,
    lora_parameters,
    recompute_contexts,
)
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_checkpoint
from flmm_detseg.structures import CaptureSpec, LMMStates

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(0, 2, 3), logits=True)
PLAIN = dict(vision=dict(r=4, alpha=8), llm=dict(r=2, alpha=4), projector=dict(r=2, alpha=4))
CONV = PLAIN | dict(vision=dict(r=4, alpha=8, kind="conv_lora", num_experts=3))
BUILDERS = pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])
LORAS = pytest.mark.parametrize("lora", [PLAIN, CONV], ids=["lora", "conv_lora"])


@torch.no_grad()
def move_off_zero(adapter) -> None:
    """What training does to B, without training."""
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(adapter.model).values():
        for up in layer.lora_B.values():
            up.weight.copy_(0.3 * torch.randn(up.weight.shape, generator=generator))


def states_of(adapter, samples=None) -> LMMStates:
    with torch.no_grad():
        return adapter.encode(make_batch(adapter, samples or mixed_samples()).inputs, EVERYTHING)


def tensors_of(states: LMMStates) -> list[torch.Tensor]:
    vision = [maps[layer] for maps in states.vision for layer in sorted(maps)]
    return [*states.attention, *(rows.states for rows in states.hidden), *vision, *states.logits]


def equal(one: LMMStates, other: LMMStates) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


def objective(adapter) -> torch.Tensor:
    states = adapter.encode(make_batch(adapter, mixed_samples()).inputs, EVERYTHING)
    total = sum((tensor.float() ** 2).mean() for tensor in tensors_of(states))
    return total + sum(adapter.auxiliary_losses().values())


def grad_groups(module) -> set[str]:
    return {
        lora_group_of(name) for name, p in module.named_parameters() if p.grad is not None and p.grad.any()
    }


@BUILDERS
def test_defaults_follow_the_part(build):
    adapter = build()
    found = add_lora(adapter, lora_groups(dict(vision={}, llm={}, projector={})))
    leaves = {group: {name.rpartition(".")[2] for name in names} for group, names in found.items()}
    assert leaves == {
        "vision": {"q_proj", "k_proj", "v_proj"},
        "llm": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "projector": {"linear_1", "linear_2"},
    }
    assert len(found["vision"]) == 3 * 3
    assert len(found["llm"]) == 4 * adapter.num_layers
    settings = {name: (group.r, group.alpha) for name, group in adapter.lora_groups.items()}
    assert settings == {"vision": (8, 32), "llm": (16, 64), "projector": (16, 64)}
    ranks = {lora_group_of(name): p.shape[0] for name, p in adapter.named_parameters() if ".lora_A." in name}
    assert ranks == {"vision": 8, "llm": 16, "projector": 16}


def test_targets_presets_and_expressions():
    def leaves(**group):
        found = add_lora(tiny_llava(), [LoRAGroup("g", **group)])["g"]
        return {re.sub(r"^.*layers\.", "", name) for name in found}

    assert {name[2:] for name in leaves(part="llm", target="all-linear")} == {
        *(f"self_attn.{k}_proj" for k in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    }  # fmt: skip
    assert {name[2:] for name in leaves(part="vision", target="all-linear")} == {
        *(f"self_attn.{k}" for k in ("q_proj", "k_proj", "v_proj", "out_proj")), "mlp.fc1", "mlp.fc2"
    }  # fmt: skip
    # PEFT's form: last names.
    assert leaves(part="llm", target=["q_proj", "self_attn.v_proj"]) == {
        name for name in leaves(part="llm", target="qkv") if not name.endswith("k_proj")
    }
    assert leaves(part="llm", target=r"layers\.[12]\.self_attn\.q_proj") == {
        "1.self_attn.q_proj",
        "2.self_attn.q_proj",
    }


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (dict(llm=dict(target=".*qproj")), "matches no linear of part 'llm'.*did you mean `q_proj`"),
        (dict(llm=dict(target="q_proj")), "matches no linear.*names there look like 'layers.0"),
        (dict(llm=dict(target="(")), "no regular expression"),
        (
            dict(llm=dict(target=["q_proj", "vproj"])),
            "`target` 'vproj' matches no linear.*did you mean `v_proj`",
        ),
        (dict(llm=dict(target=[])), "a regular expression, or a list of linears' names"),
        (dict(llm=dict(target=5)), "a regular expression, or a list of linears' names"),
        (dict(llm=dict(target=["q_proj", 5])), "a regular expression, or a list of linears' names"),
        (dict(llm=dict(rank=8)), "has no key `rank`"),
        (dict(lmm=dict(r=8)), "did you mean `llm`.*states `part`"),
        (dict(llm=dict(r=0)), "`r` is 0"),
        (dict(llm=dict(alpha=0)), "`alpha` is 0"),
        (dict(llm=dict(dropout=1.0)), "`dropout` is 1.0"),
        (dict(llm=dict(kind="conv_lora")), "needs a map of patches"),
        (dict(llm=dict(kind="dora")), "allowed: lora, conv_lora"),
        ({"a.b": dict(part="llm")}, "letters, digits and underscores"),
        (dict(vision=dict(kind="conv_lora", top_k=9)), "1..8"),
    ],
)
def test_what_cannot_be_used_is_named(lora, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        tiny_llava(lora=lora)


def test_a_failing_group_changes_nothing():
    adapter = tiny_llava(frozen=False)
    groups = [LoRAGroup("llm", "llm"), LoRAGroup("other", "llm", target="nothing")]
    with pytest.raises(ConfigError, match="'other'"):
        add_lora(adapter, groups)
    assert not lora_layers(adapter.model)
    assert all(p.requires_grad for p in adapter.parameters())
    add_lora(adapter, groups[:1])
    with pytest.raises(ConfigError, match="'llm' is there already"):
        add_lora(adapter, groups[:1])


@BUILDERS
@LORAS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_changes_at_the_start(build, lora, dtype):
    plain, adapted = build(dtype=dtype), build(dtype=dtype, lora=lora)
    assert equal(states_of(plain), states_of(adapted))
    sample = make_sample()
    assert plain.generate(sample, max_new_tokens=8) == adapted.generate(sample, max_new_tokens=8)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert adapted.model.dtype == plain.model.dtype


@BUILDERS
@LORAS
def test_only_lora_is_trained_and_all_of_it_gets_a_gradient(build, lora):
    if "kind" in lora["vision"]:
        # Every image to every expert: with the top one only, a small batch leaves experts out.
        lora = lora | dict(vision=lora["vision"] | dict(top_k=3))
    adapter = build(lora=lora).train()
    move_off_zero(adapter)
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    assert all(p.requires_grad == (lora_group_of(name) is not None) for name, p in adapter.named_parameters())
    trained = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    objective(adapter).backward()
    silent = [n for n, p in adapter.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not silent
    optimizer.step()
    for name, parameter in adapter.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_change_is_alpha_over_r_times_b_a():
    adapter = tiny_llava(lora=dict(llm=dict(r=4, alpha=6.0, target=r"layers\.0\.self_attn\.q_proj")))
    move_off_zero(adapter)
    ((_, layer),) = lora_layers(adapter.model).items()
    x = torch.randn(3, 32)
    change = 6.0 / 4 * layer.lora_B["llm"].weight @ layer.lora_A["llm"].weight
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + change).T)


def test_groups_on_one_linear_add_up():
    lora = {name: dict(part="llm", r=2, alpha=4) for name in ("det", "seg")}
    adapter = tiny_llava(lora=lora)
    move_off_zero(adapter)
    layer = next(iter(lora_layers(adapter.model).values()))
    x = torch.randn(3, 32)
    change = sum(2 * layer.lora_B[name].weight @ layer.lora_A[name].weight for name in lora)
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + change).T)
    later = tiny_llava(lora=dict(det=lora["det"]))
    add_lora(later, lora_groups(dict(seg=lora["seg"])))
    assert [n for n, _ in later.named_parameters()] == [n for n, _ in adapter.named_parameters()]
    assert set(later.lora_groups) == {"det", "seg"}
    assert all(p.requires_grad for parameters in lora_parameters(later).values() for p in parameters)


def test_dropout_works_in_training_only():
    adapter = tiny_llava(lora=dict(llm=dict(r=2, dropout=0.5)))
    move_off_zero(adapter)
    assert equal(states_of(adapter.eval()), states_of(adapter))
    assert not equal(states_of(adapter.train()), states_of(adapter))


@BUILDERS
@LORAS
def test_base_mode_is_the_lmm_before_bit_for_bit(build, lora):
    plain, adapted = build(), build(lora=lora).train()
    move_off_zero(adapted)
    sample = make_sample()
    base, base_answer = states_of(plain), plain.generate(sample, max_new_tokens=8)
    changed = states_of(adapted)
    assert not any(torch.equal(a, b) for a, b in zip(base.logits, changed.logits))
    with adapted.base_mode():
        assert equal(base, states_of(adapted))
        with adapted.base_mode():
            assert equal(base, states_of(adapted))
        assert equal(base, states_of(adapted))
        assert adapted.generate(sample, max_new_tokens=8) == base_answer
    assert equal(changed, states_of(adapted))
    assert adapted.training
    assert all(p.requires_grad == (lora_group_of(name) is not None) for name, p in adapted.named_parameters())
    with pytest.raises(RuntimeError, match="on purpose"), adapted.base_mode():
        raise RuntimeError("on purpose")
    assert equal(changed, states_of(adapted))


def test_base_mode_inside_of_a_step_leaves_its_gradients_alone():
    adapter = tiny_llava(lora=CONV).train()
    move_off_zero(adapter)
    objective(adapter).backward()
    expected = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    adapter.zero_grad()
    loss = objective(adapter)
    with torch.no_grad(), adapter.base_mode():
        adapter.encode(make_batch(adapter, [make_sample()]).inputs, EVERYTHING)
        loss.backward()
    assert all(torch.equal(p.grad, expected[n]) for n, p in adapter.named_parameters() if n in expected)


def test_gradients_go_to_the_named_groups_only():
    adapter = tiny_llava(lora=PLAIN | dict(llm_seg=dict(part="llm", r=2))).train()
    move_off_zero(adapter)
    everything = states_of(adapter)
    with adapter.lora_gradients(["vision", "llm_seg"]):
        assert equal(everything, states_of(adapter))
        loss = objective(adapter)
    loss.backward()
    assert grad_groups(adapter) == {"vision", "llm_seg"}
    assert all(p.requires_grad for ps in lora_parameters(adapter).values() for p in ps)
    adapter.zero_grad()
    objective(adapter).backward()
    assert grad_groups(adapter) == {"vision", "llm", "projector", "llm_seg"}
    with adapter.lora_gradients(["vision", "llm"]), adapter.lora_gradients(["llm", "projector"]):
        adapter.zero_grad()
        objective(adapter).backward()
    assert grad_groups(adapter) == {"llm"}
    with adapter.lora_gradients([]):
        assert not objective(adapter).requires_grad
    with pytest.raises(ConfigError, match="no LoRA group 'vison'; did you mean `vision`"):
        with adapter.lora_gradients(["vison"]):
            pass
    with pytest.raises(RuntimeError, match="on purpose"), lora_gradients(adapter, ["llm"]):
        raise RuntimeError("on purpose")
    assert all(p.requires_grad for ps in lora_parameters(adapter).values() for p in ps)


def test_lora_frozen_by_hand_stays_frozen():
    adapter = tiny_llava(lora=PLAIN)
    frozen = lora_parameters(adapter)["vision"]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with adapter.lora_gradients(["vision"]):
        assert not any(p.requires_grad for p in frozen)
    with adapter.base_mode():
        pass
    assert not any(p.requires_grad for p in frozen)


@LORAS
def test_checkpointing_repeats_the_forward_as_it_was(lora):
    adapter = tiny_llava(lora=lora).train()
    move_off_zero(adapter)

    def grads():
        adapter.zero_grad()
        with adapter.lora_gradients(["vision", "projector"]):
            loss = objective(adapter)
        loss.backward()
        return {n: p.grad.clone() for n, p in adapter.named_parameters() if p.grad is not None}

    expected = grads()
    adapter.model.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": partial(recompute_contexts, adapter.model)}
    )
    found = grads()
    assert {lora_group_of(name) for name in found} == {"vision", "projector"}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


@BUILDERS
@LORAS
def test_gradient_checkpointing_is_one_argument(build, lora):
    def grads(**arguments):
        adapter = build(lora=lora, **arguments).train()
        move_off_zero(adapter)
        calls = []
        block = adapter.model.model.language_model.layers[0].mlp
        block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        with torch.no_grad(), adapter.base_mode():
            adapter.encode(make_batch(adapter, mixed_samples()).inputs, CaptureSpec(logits=True))
        loss = objective(adapter)
        loss.backward()
        found = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
        return loss.detach(), found, calls

    loss, expected, calls = grads()
    assert calls == [False, True]
    repeated_loss, found, calls = grads(gradient_checkpointing=True)
    assert calls == [False, True, True], "the block runs again in the backward pass, and only there"
    assert torch.equal(loss, repeated_loss)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_checkpointing_of_a_frozen_lmm_is_refused():
    with pytest.raises(ConfigError, match="the LMM is frozen"):
        tiny_llava(gradient_checkpointing=True)
    assert tiny_llava(frozen=False, gradient_checkpointing=True).model.is_gradient_checkpointing


def test_switching_off_works_on_any_module_and_by_itself():
    adapter = tiny_llava(lora=PLAIN)
    move_off_zero(adapter)
    layer = next(iter(lora_layers(adapter.model).values()))
    x = torch.randn(2, 32)
    with lora_off(adapter.model):
        assert torch.equal(layer(x), layer.base_layer(x))
    assert not torch.equal(layer(x), layer.base_layer(x))


def test_names_shapes_and_embeddings_of_a_model_on_the_meta_device():
    with torch.device("meta"):
        adapter = LlavaAdapter.from_config(tiny_llava_config(), lora=CONV)
    real = tiny_llava(lora=CONV)
    shapes = {name: p.shape for name, p in adapter.named_parameters()}
    assert shapes == {name: p.shape for name, p in real.named_parameters()}
    assert {p.device.type for p in adapter.parameters()} == {"meta"}
    assert adapter.class_embeddings(["a", "star"]).shape == (2, 32)


@BUILDERS
def test_facts_heads_are_built_from(build):
    adapter = build()
    assert (adapter.vision_channels, adapter.patch_size, adapter.vision_grid) == (32, 14, (4, 4))
    for path in (path for paths in adapter.part_prefixes.values() for path in paths):
        assert sum(p.numel() for p in adapter.model.get_submodule(path).parameters())


def test_class_embeddings_are_means_over_tokens():
    adapter = tiny_llava(dtype="bfloat16", frozen=False)
    found = adapter.class_embeddings(["red star", "ring"])
    table = adapter.model.get_input_embeddings().weight.float()
    ids = adapter.processor.tokenizer.convert_tokens_to_ids
    torch.testing.assert_close(found[0], (table[ids("red")] + table[ids("star")]) / 2)
    assert torch.equal(found[1], table[ids("ring")])
    assert found.dtype == torch.float32
    assert not found.requires_grad
    with pytest.raises(ConfigError, match="'' has no token"):
        adapter.class_embeddings(["ring", ""])


def grounding_model(lora=CONV) -> GroundingLMM:
    torch.manual_seed(0)
    head = dict(
        type=PhraseGroundingHead,
        mask_head=dict(type=UNetHead, base_channels=8, num_stages=3, upsample_input=16),
        sam=dict(type=make_refiner),
        text_dim=16,
    )
    return GroundingLMM(lmm=dict(type=tiny_llava, lora=lora), heads=dict(phrase=head)).eval()


def test_a_checkpoint_holds_lora_and_brings_it_back(tmp_path):
    trained = grounding_model()
    move_off_zero(trained.lmm)
    torch.save(trained.trainable_state_dict(), tmp_path / "file.pth")
    stored = load_checkpoint(tmp_path / "file.pth")
    in_lmm = [name for name in stored if name.startswith("lmm.")]
    assert in_lmm
    assert all(lora_group_of(name) for name in in_lmm)
    assert "lmm.model.model.language_model.layers.0.self_attn.q_proj.lora_B.llm.weight" in in_lmm
    assert (
        "lmm.model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.vision.weight"
        in in_lmm
    )
    untrained = grounding_model()
    samples = [make_sample(0), make_sample(1)]
    wanted = [p.mask_logits for p in trained.predict(samples)]
    assert not torch.equal(untrained.predict(samples)[0].mask_logits, wanted[0])
    untrained.load_trainable(stored, "file.pth")
    assert all(torch.equal(p.mask_logits, w) for p, w in zip(untrained.predict(samples), wanted))
    with pytest.raises(CheckpointError, match="missing.*lora_A"):
        untrained.load_trainable({k: v for k, v in stored.items() if k not in in_lmm}, "file.pth")


def test_the_fingerprint_of_the_lmm_does_not_see_lora():
    plain, adapted = grounding_model(None), grounding_model()
    assert plain.frozen_fingerprint() == adapted.frozen_fingerprint()
    move_off_zero(adapted.lmm)
    assert plain.frozen_fingerprint() == adapted.frozen_fingerprint()
    layer = next(iter(lora_layers(adapted.lmm).values()))
    with torch.no_grad():
        layer.base_layer.weight[0, 0] += 1e-3
    assert plain.frozen_fingerprint() != adapted.frozen_fingerprint()


def test_an_adapted_model_can_be_copied_after_a_forward():
    adapter = tiny_llava(lora=CONV).train()
    objective(adapter)
    assert equal(states_of(deepcopy(adapter)), states_of(adapter))
