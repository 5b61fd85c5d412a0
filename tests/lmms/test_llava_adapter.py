from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from same_states import EVERYTHING, assert_same
from tiny import (
    make_batch,
    make_sample,
    mixed_samples,
    tiny_llava,
    tiny_llava_config,
    tiny_llava_next,
    tiny_tokenizer,
)
from transformers import LlavaForConditionalGeneration

from flmm_detseg.errors import ConfigError, PhraseWithoutTokensError
from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter
from flmm_detseg.lmms.capture import row_tap
from flmm_detseg.lmms.capture.row_tap import ROW_TAP
from flmm_detseg.structures import CaptureSpec, LMMStates

BUILDERS = pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])


def plain_forward(adapter, item, attention: str):
    """The model as transformers runs it, without anything of ours."""
    model = type(adapter.model)(deepcopy(adapter.model.config))
    model.load_state_dict(adapter.model.state_dict())
    model.set_attn_implementation(attention)
    extra = {"image_sizes": torch.tensor([item.grid.image_size])} if item.pixel_values.ndim == 4 else {}
    with torch.no_grad():
        return model.eval()(
            input_ids=item.input_ids[None],
            attention_mask=torch.ones(1, len(item.input_ids)),
            pixel_values=item.pixel_values[None],
            output_attentions=attention == "eager",
            output_hidden_states=True,
            **extra,
        )


@BUILDERS
@pytest.mark.parametrize("merge", ["mean", "max"])
def test_captures_equal_transformers_eager_forward(build, merge):
    adapter = build(rows=dict(merge=merge))
    for sample in mixed_samples():
        item = adapter.prepare(sample)
        states = adapter.encode([item], EVERYTHING)
        theirs = plain_forward(adapter, item, "eager")
        columns = item.image_mask.nonzero().flatten()
        levels = columns.split([level.num_tokens for level in item.grid.levels])
        for k in range(item.num_phrases):
            own = item.phrase_tokens[k]
            per_level = []
            for level, places in zip(item.grid.levels, levels):
                maps = torch.stack(theirs.attentions)[:, 0, :, own][..., places]
                maps = maps.mean(2) if merge == "mean" else maps.amax(2)
                maps = maps.flatten(0, 1).unflatten(-1, (level.rows, -1))[..., : level.cols]
                per_level.append(
                    torch.nn.functional.interpolate(maps[None], item.grid.output_grid, mode="bilinear")[0]
                )
            torch.testing.assert_close(states.attention[0][k], torch.cat(per_level), rtol=0, atol=1e-6)
        rows = states.hidden[0]
        for layer, hidden in enumerate(theirs.hidden_states[1:]):
            for k in range(item.num_phrases):
                torch.testing.assert_close(
                    rows.states[layer, rows.phrase_ids == k],
                    hidden[0, item.phrase_tokens[k]],
                    rtol=1e-5,
                    atol=2e-5,
                )
        torch.testing.assert_close(
            states.logits[0], theirs.logits[0, states.logits_start[0] :], rtol=1e-5, atol=2e-5
        )


@BUILDERS
def test_batch_equals_one_by_one(build):
    adapter = build()
    batch = make_batch(adapter, mixed_samples())
    together = adapter.encode(batch.inputs, EVERYTHING)
    alone = [adapter.encode([item], EVERYTHING) for item in batch.inputs]
    kept = [name for name, value in vars(together).items() if value is not None]
    gathered = LMMStates(**{name: [getattr(states, name)[0] for states in alone] for name in kept})
    assert_same(together, gathered)


@BUILDERS
def test_eager_mode_equals_rows_mode(build):
    rows, eager = build(), build(rows=dict(attention="eager"))
    batch = make_batch(rows, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    assert_same(rows.encode(batch.inputs, EVERYTHING, keys), eager.encode(batch.inputs, EVERYTHING, keys))
    assert eager.model.config.text_config._attn_implementation == ROW_TAP


def test_rows_are_cast_like_the_eager_block_in_bfloat16():
    rows, eager = tiny_llava(dtype="bfloat16"), tiny_llava(dtype="bfloat16", rows=dict(attention="eager"))
    batch = make_batch(rows, mixed_samples())
    ours = rows.encode(batch.inputs, CaptureSpec(attention=True)).attention
    theirs = eager.encode(batch.inputs, CaptureSpec(attention=True)).attention
    for index, (our, their) in enumerate(zip(ours, theirs)):
        assert our.dtype == torch.float32, index
        # Layer 0 has equal inputs: equal roundings. Later layers see other kernels' block outputs.
        torch.testing.assert_close(our[:, :4], their[:, :4], rtol=0, atol=1e-3)
        torch.testing.assert_close(our, their, rtol=0, atol=2e-2)


@BUILDERS
def test_attention_rows_of_a_cast_adapter_are_those_of_float32(build):
    exact, cast = build(), build().bfloat16()
    batch = make_batch(exact, mixed_samples())
    theirs = exact.encode(batch.inputs, CaptureSpec(attention=True)).attention
    ours = cast.encode(batch.inputs, CaptureSpec(attention=True)).attention
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.float32
        assert (our - their).norm() < 0.04 * their.norm()  # eight bits of mantissa, two or three layers


@BUILDERS
def test_layer_and_head_subsets_are_slices_of_the_whole(build):
    whole = build()
    part = build(rows=dict(layers=[1], heads=[0, 3]))
    batch = make_batch(whole, mixed_samples())
    everything = whole.encode(batch.inputs, CaptureSpec(attention=True)).attention
    chosen = part.encode(batch.inputs, CaptureSpec(attention=True)).attention
    levels = whole.facts.num_levels
    assert part.attention_channels == 2 * levels
    per_level = whole.attention_channels // levels
    channels = [level * per_level + 4 + head for level in range(levels) for head in (0, 3)]
    for one, all_ in zip(chosen, everything):
        torch.testing.assert_close(one, all_[:, channels], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (dict(merg="max"), r"unknown keys \['merg'\].*merge"),
        (dict(merge="median"), "merge"),
        (dict(attention="flash"), "attention"),
        (dict(layers=[3]), r"names 3; the language model has 0\.\.2"),
        (dict(heads=[4]), r"names 4; the language model has 0\.\.3"),
        (dict(layers=[]), "layers"),
        (dict(layers=[1, 0]), "ascending"),
        (dict(heads=[1, 1]), "heads"),
        (dict(heads=[-1]), "heads"),
    ],
)
def test_bad_row_settings_are_config_errors(rows, message):
    with pytest.raises(ConfigError, match=message):
        tiny_llava(rows=rows)


def test_overlapping_phrases_and_no_phrases():
    adapter = tiny_llava()
    sample = make_sample(0, num_phrases=1)
    twice = replace(sample, phrases=sample.phrases * 2)
    none = replace(sample, phrases=())
    batch = make_batch(adapter, [none, twice, sample])
    states = adapter.encode(batch.inputs, EVERYTHING)
    assert states.attention[0].shape == (0, 12, 4, 4)
    assert states.hidden[0].states.shape == (3, 0, 32)
    torch.testing.assert_close(states.attention[1][0], states.attention[1][1])
    torch.testing.assert_close(states.attention[1][0], states.attention[2][0], rtol=0, atol=1e-6)
    assert states.hidden[1].phrase_ids.tolist() == [0, 1] * 4
    alone = adapter.encode(batch.inputs[:1], EVERYTHING)
    assert alone.attention[0].shape == (0, 12, 4, 4)


def test_a_phrase_without_tokens_is_an_error_that_names_it():
    adapter = tiny_llava()
    item = adapter.prepare(make_sample(7, num_phrases=2))
    empty = replace(item, phrase_tokens=item.phrase_tokens & torch.tensor([[True], [False]]))
    with pytest.raises(PhraseWithoutTokensError, match=r"tiny/7: phrases \[1\]"):
        adapter.encode([empty], CaptureSpec(attention=True))


def test_nothing_is_captured_that_was_not_asked():
    adapter = tiny_llava()
    item = adapter.prepare(make_sample())
    calls = []
    hook = adapter.model.lm_head.register_forward_hook(lambda *_: calls.append("lm_head"))
    text_hook = adapter.model.model.language_model.register_forward_hook(lambda *_: calls.append("text"))
    for capture in (CaptureSpec(attention=True), CaptureSpec(hidden="all"), CaptureSpec(vision_layers=(1,))):
        states = adapter.encode([item], capture)
        kept = {name for name, value in vars(states).items() if value is not None}
        assert kept == {name for name in ("attention", "hidden") if getattr(capture, name)} | (
            {"vision"} if capture.vision_layers else set()
        )
    assert calls == ["text", "text"]
    hook.remove(), text_hook.remove()
    hooks = [hook for module in adapter.model.modules() for hook in module._forward_hooks.values()]
    # Transformers 5 leaves its own there, which are idle unless it asks for hidden states.
    assert [hook for hook in hooks if not hook.__module__.startswith("transformers.")] == []


def test_vision_layers_are_the_towers_hidden_states():
    for adapter in (tiny_llava(), tiny_llava_next()):
        batch = make_batch(adapter, mixed_samples()[:2])
        states = adapter.encode(batch.inputs, CaptureSpec(vision_layers=(0, 3)))
        for item, maps in zip(batch.inputs, states.vision):
            base = item.pixel_values[:1] if item.pixel_values.ndim == 4 else item.pixel_values[None]
            hidden = adapter.model.model.vision_tower(base, output_hidden_states=True).hidden_states
            assert sorted(maps) == [0, 3]
            for layer, ours in maps.items():
                expected = hidden[layer][0, 1:].T.unflatten(1, (4, 4))
                torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        with pytest.raises(ConfigError, match=r"\[4\] do not exist; the tower has hidden states 0\.\.3"):
            adapter.encode(batch.inputs, CaptureSpec(vision_layers=(4,)))


@BUILDERS
def test_answers_are_those_of_the_plain_model(build):
    adapter = build()
    sample = make_sample(1, prompt="a red star ?")
    adapter.encode([adapter.prepare(sample)], CaptureSpec(attention=True, hidden="all"))
    item = adapter.processor.question(sample)
    plain = type(adapter.model)(deepcopy(adapter.model.config))
    plain.load_state_dict(adapter.model.state_dict())
    plain.set_attn_implementation("sdpa")
    extra = {"image_sizes": torch.tensor([item.grid.image_size])} if item.pixel_values.ndim == 4 else {}
    arguments = dict(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids)),
        pixel_values=item.pixel_values[None],
        **extra,
    )
    with torch.no_grad():
        expected = plain.eval().generate(**arguments, max_new_tokens=12, do_sample=False)
        text = tiny_tokenizer().decode(expected[0, len(item.input_ids) :], skip_special_tokens=True).strip()
        expected_logits = plain(**arguments).logits
        assert torch.equal(adapter.model(**arguments).logits, expected_logits)
        with adapter.base_mode():
            assert adapter.model.config.text_config._attn_implementation == "sdpa"
            assert torch.equal(adapter.model(**arguments).logits, expected_logits)
            inside = adapter.encode([adapter.prepare(sample)], CaptureSpec(attention=True))
        outside = adapter.encode([adapter.prepare(sample)], CaptureSpec(attention=True))
        assert torch.equal(inside.attention[0], outside.attention[0])
    assert adapter.model.config.text_config._attn_implementation == ROW_TAP
    assert adapter.generate(sample, max_new_tokens=12) == text != ""
    assert len(adapter.generate(sample, max_new_tokens=1)) < len(text)


def test_two_adapters_do_not_disturb_each_other():
    one, two = tiny_llava(seed=1), tiny_llava(seed=2, rows=dict(merge="max", layers=[0]))
    batch = make_batch(one, mixed_samples())
    before = one.encode(batch.inputs, CaptureSpec(attention=True)).attention
    two.encode(batch.inputs[:1], CaptureSpec(attention=True))
    after = one.encode(batch.inputs, CaptureSpec(attention=True)).attention
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_frozen_model_has_no_gradient_and_stays_in_eval_mode():
    adapter = tiny_llava(frozen=True)
    adapter.train()
    assert adapter.training
    assert not any(module.training for module in adapter.model.modules())
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    states = adapter.encode([adapter.prepare(make_sample())], EVERYTHING)
    tensors = [states.attention[0], states.hidden[0].states, states.logits[0], states.vision[0][2]]
    assert not any(tensor.requires_grad for tensor in tensors)


def gradients(adapter: LlavaAdapter, batch, keys) -> dict[str, torch.Tensor]:
    adapter.zero_grad()
    states = adapter.encode(batch.inputs, EVERYTHING, keys)
    loss = sum(
        (a.square().sum() * 100 + h.states.square().mean() + logits.square().mean() + v[2].mean())
        for a, h, logits, v in zip(states.attention, states.hidden, states.logits, states.vision)
    )
    loss.backward()
    return {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])
def test_trainable_model_gets_the_same_gradients_shared_checkpointed_and_eager(build):
    adapter, eager = build(frozen=False), build(frozen=False, rows=dict(attention="eager"))
    batch = make_batch(adapter, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    adapter.train()
    assert adapter.model.training
    plain = gradients(adapter, batch, None)
    queries = [name for name in plain if "language_model" in name and "q_proj" in name]
    assert len(queries) == adapter.num_layers
    assert all(plain[name].abs().max() > 0 for name in queries)
    shared = gradients(adapter, batch, keys)
    from_eager = gradients(eager, batch, None)
    adapter.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(adapter, batch, None)
    checkpointed_shared = gradients(adapter, batch, keys)
    for name, grad in plain.items():
        scale = max(1e-3, grad.abs().max().item())
        for other in (shared, from_eager, checkpointed, checkpointed_shared):
            assert (other[name] - grad).abs().max() / scale < 1e-3, name


def test_attention_alone_carries_a_gradient():
    adapter = tiny_llava(frozen=False)
    states = adapter.encode([adapter.prepare(make_sample())], CaptureSpec(attention=True))
    states.attention[0].amax().backward()
    assert adapter.model.model.language_model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0


def test_seven_billion_shapes_on_the_meta_device():
    with torch.device("meta"):
        adapter = LlavaAdapter.from_config({}, dtype="bfloat16")
    assert (adapter.num_layers, adapter.hidden_size, adapter.attention_channels) == (32, 4096, 1024)
    assert adapter.device.type == "meta"
    assert adapter.model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="without a tokenizer"):
        adapter.prepare(make_sample())
    with pytest.raises(ConfigError, match="without a tokenizer"):
        adapter.generate(make_sample())


def test_next_shapes_on_the_meta_device():
    with torch.device("meta"):
        adapter = LlavaNextAdapter.from_config({}, dtype="bfloat16", rows=dict(layers=range(8, 24)))
    assert (adapter.num_layers, adapter.hidden_size, adapter.attention_channels) == (32, 4096, 2 * 16 * 32)


def test_eager_mode_refuses_gradient_checkpointing():
    adapter = tiny_llava(frozen=False, rows=dict(attention="eager"))
    adapter.model.gradient_checkpointing_enable({"use_reentrant": False})
    item = adapter.prepare(make_sample())
    with pytest.raises(ConfigError, match="parity checks"):
        adapter.encode([item], CaptureSpec(attention=True))


def test_class_token_among_the_image_tokens_is_refused():
    config = tiny_llava_config()
    config.vision_feature_select_strategy = "full"
    with pytest.raises(ConfigError, match="vision_feature_select_strategy"):
        LlavaAdapter(LlavaForConditionalGeneration(config), None)


@BUILDERS
def test_rows_a_few_at_a_time_are_the_same(build, monkeypatch):
    adapter = build()
    batch = make_batch(adapter, mixed_samples())
    seen = []
    rows_of = row_tap.attention_rows
    monkeypatch.setattr(
        row_tap,
        "attention_rows",
        lambda q, k, part, **rest: seen.append(part.shape[1]) or rows_of(q, k, part, **rest),
    )
    whole = adapter.encode(batch.inputs, EVERYTHING)
    (most,) = set(seen)
    monkeypatch.setattr(row_tap, "ROWS_PER_CALL", 3)
    seen.clear()
    assert_same(adapter.encode(batch.inputs, EVERYTHING), whole, atol=1e-6)
    assert max(seen) == 3
    assert sum(seen) == most * adapter.num_layers
