"""What every family has to keep, compared with transformers' own forward pass.

A family takes part by a module ``tiny_NAME.py`` that builds a tiny random model; no test here names a family.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from same_states import EVERYTHING, assert_same
from tiny import make_sample, mixed_samples
from tiny_families import FAMILIES, blind, build
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.lmms.capture.packing import image_columns
from flmm_detseg.lmms.family import LEAVES
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.lora.layers import lora_group_of, lora_layers
from flmm_detseg.lmms.weights.export import save_hub_model
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, LMMInputs, LMMStates, Phrase, Sample, Turn

pytestmark = pytest.mark.parametrize("family", FAMILIES)
TEXT = CaptureSpec(attention=True, hidden="all", logits=True, likelihood=True)


def samples() -> list[Sample]:
    """Three texts about one image, two other images of other shapes; large enough for every family's tiles."""
    sizes = {"shared": (150, 110), "alone": (120, 120)}
    return [
        replace(
            make_sample(
                index, image_size=sizes.get(sample.image_id, (90, 200)), num_phrases=len(sample.phrases),
                image_id=sample.image_id,
            ),
            prompt="where is the star ?",
        )
        for index, sample in enumerate(mixed_samples())
    ]  # fmt: skip


def own_forward(lmm: LMM, item: LMMInputs, attention: str = "sdpa"):
    """The model as transformers runs it, without anything of ours."""
    plain = deepcopy(lmm.model)
    plain.set_attn_implementation(attention)
    normed = []
    lmm.family.decoder(plain).register_forward_hook(lambda _, __, output: normed.append(output[0]))
    with torch.no_grad():
        output = plain(
            input_ids=item.input_ids[None],
            attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
            output_hidden_states=True,
            output_attentions=attention == "eager",
            use_cache=False,
            **lmm.own_inputs(item),
        )
    # Some models hand out the last state before the norm, others after it.
    output.hidden_states = (*output.hidden_states[:-1], normed[0])
    return output


def special_items(lmm: LMM) -> dict[str, LMMInputs]:
    """Prompts beyond one image and one question."""
    sample = samples()[0]
    turns = (Turn("what is it ?", "a red ring"), Turn("and left ?", "a star"))
    return {
        "two images": lmm.prepare(replace(sample, more_images=(samples()[1].image,))),
        "turns": lmm.prepare(replace(sample, turns=turns)),
        "both": lmm.prepare(replace(sample, turns=turns, more_images=(samples()[3].image,))),
    }


@torch.no_grad()
def test_logits_and_hidden_rows_are_those_of_the_models_own_forward(family):
    lmm = build(family)
    items = [*(lmm.prepare(sample) for sample in samples()), *special_items(lmm).values()]
    for item in items:
        ours, theirs = lmm.encode([item], TEXT), own_forward(lmm, item)
        start = ours.logits_start[0]
        torch.testing.assert_close(ours.logits[0], theirs.logits[0, start:], rtol=1e-4, atol=2e-5)
        rows = ours.hidden[0]
        scores = theirs.logits[0].log_softmax(-1)
        for phrase, tokens in enumerate(item.phrase_tokens):
            places = tokens.nonzero().flatten()
            own, best = ours.likelihood[0][rows.phrase_ids == phrase].unbind(1)
            torch.testing.assert_close(own, scores[places - 1, item.input_ids[places]], rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(best, scores[places - 1].amax(-1), rtol=1e-4, atol=2e-5)
        for layer, states in enumerate(theirs.hidden_states[1:]):
            for phrase, tokens in enumerate(item.phrase_tokens):
                torch.testing.assert_close(
                    rows.states[layer, rows.phrase_ids == phrase], states[0, tokens], rtol=1e-4, atol=2e-5
                )


@torch.no_grad()
def test_hidden_rows_of_chosen_layers(family):
    lmm = build(family)
    last = lmm.num_layers
    item = lmm.prepare(samples()[0])
    states = own_forward(lmm, item).hidden_states
    for layers in ((last,), (1,), (1, last)):
        (rows,) = lmm.encode([item], CaptureSpec(hidden=layers)).hidden
        assert rows.layers == layers
        assert len(rows.states) == len(layers)
        for layer, found in zip(rows.layers, rows.states, strict=True):
            for phrase, tokens in enumerate(item.phrase_tokens):
                torch.testing.assert_close(
                    found[rows.phrase_ids == phrase], states[layer][0, tokens], rtol=1e-4, atol=2e-5
                )
    with pytest.raises(ConfigError, match=rf"\[{last + 1}\] do not exist"):
        lmm.encode([item], CaptureSpec(hidden=(last + 1,)))


@torch.no_grad()
def test_rows_are_those_of_eager_attention(family):
    facts = build(family).facts
    lmm = build(family, rows=dict(layers=sorted(set(range(facts.num_layers)) - set(facts.rowless_layers))))
    for item in [*(lmm.prepare(sample) for sample in samples()[:3]), *special_items(lmm).values()]:
        stack = lmm.encode([item], CaptureSpec(attention=True)).attention[0]
        theirs = torch.cat([layer[0] for layer in own_forward(lmm, item, "eager").attentions])
        columns = image_columns(item)
        for phrase, tokens in enumerate(item.phrase_tokens):
            rows = theirs[:, tokens].mean(1)[:, columns]
            torch.testing.assert_close(stack[phrase], as_stack(rows, item), rtol=0, atol=2e-6)
        assert theirs[:, :, columns].std() > 1e-3  # nothing is shown by uniform rows


def as_stack(rows: Tensor, item: LMMInputs) -> Tensor:
    """Rows ``[C, N]`` on the output grid, level after level, by hand."""
    maps, start = [], 0
    for level in item.grid.levels:
        count = level.rows * level.cols
        maps.append(rows[:, start : start + count].view(-1, level.rows, level.cols))
        start += count
    resized = [
        torch.nn.functional.interpolate(maps[index][None], item.grid.output_grid, mode="bilinear")[0]
        for index in item.grid.stacked
    ]
    return torch.cat(resized)


@torch.no_grad()
def test_a_batch_is_its_samples_one_by_one(family):
    lmm = build(family)
    items = [lmm.prepare(sample) for sample in samples()]
    together = lmm.encode(items, EVERYTHING)
    alone = [lmm.encode([item], EVERYTHING) for item in items]
    assert_same(together, gathered(alone))
    assert all(stack.shape[1] == lmm.attention_channels for stack in together.attention)


@torch.no_grad()
def test_texts_after_one_image_are_read_as_if_alone(family):
    lmm = build(family)
    items = [lmm.prepare(sample) for sample in samples()]
    keys = [sample.image_id for sample in samples()]
    packed = lmm.encode(items, EVERYTHING, keys)
    assert_same(packed, gathered([lmm.encode([item], EVERYTHING) for item in items]))
    windows = [window for window in lmm.facts.windows.values() if window is not None]
    # Beyond every window of the decoder.
    assert all(len(item.input_ids) > window for item in items for window in windows)


def gathered(alone: list[LMMStates]) -> LMMStates:
    kept = [name for name, value in vars(alone[0]).items() if value is not None]
    return LMMStates(**{name: [getattr(states, name)[0] for states in alone] for name in kept})


@torch.no_grad()
def test_answers_are_those_of_generate_and_states_those_of_teacher_forcing(family):
    lmm = build(family)
    sample = replace(samples()[0], more_images=(samples()[3].image,))
    for given in (samples()[0], sample):
        generation = lmm.generate_with_states(given, EVERYTHING, max_new_tokens=8)
        item = lmm.processor.question(given)
        expected = deepcopy(lmm.model).generate(
            input_ids=item.input_ids[None],
            attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
            **lmm.own_inputs(item),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=lmm.end_ids,
        )[0, len(item.input_ids) :]
        assert generation.token_ids.tolist() == expected.tolist()
        assert generation.text == lmm.generate(given, max_new_tokens=8)
        full = own_forward(lmm, generation.inputs).logits[0, len(item.input_ids) - 1 : -1].log_softmax(-1)
        theirs = full.gather(1, generation.token_ids[:, None])[:, 0]
        torch.testing.assert_close(generation.log_probs, theirs, rtol=1e-4, atol=2e-5)
        spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
        assert spans
        phrases = [Phrase((spans[0],)), Phrase((spans[-1],))]
        ours = lmm.states_of_phrases(generation, phrases)
        theirs = lmm.encode([phrase_inputs(generation, phrases)], EVERYTHING)
        torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(ours.likelihood[0], theirs.likelihood[0], rtol=1e-4, atol=2e-5)
        for layer, maps in theirs.vision[0].items():
            torch.testing.assert_close(ours.vision[0][layer], maps, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(150, 110), (90, 200), (120, 120)])
def test_a_square_of_the_image_is_found_where_it_is(family, size):
    """Geometry without eyes: of all levels and of the vision maps."""
    lmm = build(family)
    blind(lmm)
    plain = make_sample(0, image_size=size)
    layer = lmm.facts.vision.num_layers
    before = seen(lmm, plain, layer)
    for y, x in ((0.2, 0.3), (0.55, 0.7), (0.85, 0.15)):
        image = plain.image.copy()
        top, left = int(y * size[0]) - 3, int(x * size[1]) - 3
        image[top : top + 7, left : left + 7] = 255 - image[top : top + 7, left : left + 7]
        for map_before, map_after, fractions in zip(
            before, seen(lmm, replace(plain, image=image), layer), windows_of(lmm, plain), strict=True
        ):
            rows, cols = map_before.shape[1:]
            change = (map_after - map_before).norm(dim=0)
            y0, x0, y1, x1 = fractions
            # The centre of the change, in cells: a square may lie on several.
            weights = change / change.sum()
            row = float((weights.sum(1) * (torch.arange(rows) + 0.5)).sum())
            col = float((weights.sum(0) * (torch.arange(cols) + 0.5)).sum())
            assert abs(row - (y0 + (top + 3.5) / size[0] * (y1 - y0)) * rows) < 0.75
            assert abs(col - (x0 + (left + 3.5) / size[1] * (x1 - x0)) * cols) < 0.75


def seen(lmm: LMM, sample: Sample, layer: int) -> list[Tensor]:
    """Image tokens of every level and a hidden state of the tower, as maps ``[D, rows, cols]``."""
    item = lmm.prepare(sample)
    found, vision = lmm.see([item], [0], (layer,))
    tokens = found[0][0]
    maps, start = [], 0
    for level in item.grid.levels:
        part = tokens[start : start + level.num_tokens][level.places()]
        maps.append(part.T.reshape(-1, level.rows, level.cols))
        start += level.num_tokens
    return [*maps, vision[0][layer]]


def windows_of(lmm: LMM, sample: Sample) -> list[tuple[float, float, float, float]]:
    """Where the image is in each of these maps."""
    grid = lmm.prepare(sample).grid
    return [grid.view_fractions] * (len(grid.levels) + 1)


def test_base_mode_is_the_untouched_model_bit_for_bit(family):
    lmm = build(family, lora=dict(vision=dict(r=2), llm=dict(r=2)), frozen=False)
    reference = build(family)
    with torch.no_grad():
        for layer in lora_layers(lmm.model).values():
            for up in layer.lora_B.values():
                up.weight.normal_(std=0.3)
        items = [lmm.prepare(sample) for sample in samples()[:2]]
        expected = reference.encode(items, EVERYTHING)
        with lmm.base_mode():
            inside = lmm.encode(items, EVERYTHING)
        adapted = lmm.encode(items, EVERYTHING)
    for ours, theirs, other in zip(inside.logits, expected.logits, adapted.logits, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, other)
    for ours, theirs in zip(inside.attention, expected.attention, strict=True):
        assert torch.equal(ours, theirs)


def test_only_lora_is_trained_and_all_of_it(family):
    lmm = build(family, lora=dict(vision=dict(r=2), llm=dict(r=2)), frozen=False).train()
    item = lmm.prepare(samples()[0])
    lmm.freeze_unread(())
    states = lmm.encode([item], TEXT)
    sum(part.square().sum() for part in (*states.attention, *states.logits)).backward()
    trained = {name for name, weight in lmm.named_parameters() if weight.requires_grad}
    assert trained
    assert all(lora_group_of(name) for name in trained)
    for name, weight in lmm.named_parameters():
        assert (weight.grad is not None) == (name in trained), name
        if "lora_A" not in name and name in trained:
            assert weight.grad.abs().sum() > 0, name


def test_gradient_checkpointing_gives_the_same_gradients(family):
    found = []
    for checkpointing in (False, True):
        lmm = build(
            family, lora=dict(vision=dict(r=2), llm=dict(r=2)), frozen=False, gradient_checkpointing=checkpointing
        ).train()  # fmt: skip
        lmm.freeze_unread((1,))
        states = lmm.encode([lmm.prepare(samples()[0])], replace(TEXT, vision_layers=(1,)))
        values = (*states.attention, *states.logits, states.hidden[0].states, states.vision[0][1])
        sum(part.square().sum() for part in values).backward()
        found.append(
            {name: weight.grad for name, weight in lmm.named_parameters() if weight.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6)


def test_every_lora_preset_finds_linears_of_its_part(family):
    for part in ("vision", "llm", "projector"):
        presets = build(family).facts.lora_targets.get(
            part, LEAVES if part != "projector" else {"all-linear": None}
        )
        for preset in presets:
            lmm = build(family, lora={part: dict(r=1, target=preset)}, frozen=False)
            names = list(lora_layers(lmm.model))
            assert names
            assert all(name.startswith(lmm.part_prefixes[part]) for name in names)


def test_conv_lora_is_for_towers_with_a_grid(family):
    lora = dict(vision=dict(kind="conv_lora", r=2, num_experts=2))
    facts = build(family).facts
    if facts.vision.grid is None or len(facts.parts["vision"]) > 1:
        with pytest.raises(ConfigError, match="grid of patches"):
            build(family, lora=lora, frozen=False)
        return
    lmm = build(family, lora=lora, frozen=False)
    item = lmm.prepare(samples()[0])
    with torch.no_grad():
        ours, theirs = lmm.encode([item], TEXT), build(family).encode([item], TEXT)
    torch.testing.assert_close(ours.logits[0], theirs.logits[0], rtol=1e-4, atol=2e-5)


def test_a_folder_in_hub_layout_gives_the_same_model(family, tmp_path):
    lmm = build(family)
    lmm.model.save_pretrained(tmp_path)
    own = getattr(lmm.processor, "hub", None)
    if own is None:
        lmm.processor.tokenizer.save_pretrained(tmp_path)
        settings = lmm.processor.settings
        (tmp_path / "preprocessor_config.json").write_text(
            f'{{"image_mean": {list(settings.image_mean)}, "image_std": {list(settings.image_std)}}}'
        )
    else:
        own.save_pretrained(tmp_path)
    loaded = type(lmm).from_pretrained(str(tmp_path), max_length=lmm.processor.settings.max_length)
    item, again = lmm.prepare(samples()[0]), loaded.prepare(samples()[0])
    assert torch.equal(item.input_ids, again.input_ids)
    assert torch.equal(item.pixel_values, again.pixel_values)
    for ours, theirs in zip(
        lmm.encode([item], TEXT).logits, loaded.encode([again], TEXT).logits, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_model_is_written_with_a_processor_that_fits(family, tmp_path):
    lmm = build(family)
    own = getattr(lmm.processor, "hub", None)
    if own is None:
        return  # tests/lmms/weights/test_export.py: transformers' processor is not the one that is used here
    lmm.model.save_pretrained(tmp_path / "from")
    own.save_pretrained(tmp_path / "from")
    out = save_hub_model(lmm.family, lmm.model, str(tmp_path / "from"), tmp_path / "to")
    loaded = type(lmm).from_pretrained(str(out), max_length=lmm.processor.settings.max_length)
    item, again = lmm.prepare(samples()[0]), loaded.prepare(samples()[0])
    assert torch.equal(item.input_ids, again.input_ids)
    assert torch.equal(lmm.encode([item], TEXT).logits[0], loaded.encode([again], TEXT).logits[0])


def test_answers_end_with_what_ends_learned_ones(family):
    lmm = build(family)
    tokenizer = lmm.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(lmm.processor.template.turn_end or tokenizer.eos_token)
    sample = replace(samples()[0], task="vqa")
    assert lmm.prepare(sample).labels[-1] == end

    def push(_, __, logits):
        pushed = logits.clone()
        pushed[..., end] = logits.amax() + 1
        return pushed

    lmm.unembed.register_forward_hook(push)
    generation = lmm.generate_with_states(sample, CaptureSpec(), max_new_tokens=5)
    assert generation.token_ids.tolist() == [end]
    assert generation.text == lmm.generate(sample, max_new_tokens=5) == ""


@torch.no_grad()
def test_threads_do_not_change_each_others_answers(family):
    lmm = build(family)
    asked = [replace(samples()[0], prompt=f"{word} ?") for word in ("star", "ring")]
    asked[1] = replace(asked[1], image=samples()[1].image)
    expected = [lmm.generate(sample, max_new_tokens=6) for sample in asked]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda index: lmm.generate(asked[index % 2], max_new_tokens=6), range(8)))
    assert answers == [expected[index % 2] for index in range(8)]


def test_another_processor_is_refused_when_the_model_is_built(family):
    lmm = build(family)
    for other in FAMILIES:
        foreign = build(other).processor
        foreign = getattr(foreign, "hub", foreign.tokenizer)
        if type(foreign) is not type(getattr(lmm.processor, "hub", lmm.processor.tokenizer)):
            with pytest.raises(ConfigError):
                build(family, tokenizer=foreign)


def test_bfloat16_keeps_rotary_frequencies_in_float32(family):
    lmm = build(family, dtype="bfloat16")
    frequencies = [value for name, value in lmm.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert all(value.dtype == torch.float32 for value in frequencies)
    exact = build(family)
    # Transformers 4.57 chooses rows of this table by the dtype in Idefics3 and SmolVLM (its pull request 47133).
    for name, weight in exact.model.named_parameters():
        if name.endswith("vision_model.embeddings.position_embedding.weight"):
            nn.init.zeros_(weight)
    lmm.model.load_state_dict(exact.model.state_dict())
    item = exact.prepare(samples()[0])
    ours, theirs = (model.encode([item], CaptureSpec(attention=True)).attention[0] for model in (lmm, exact))
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_a_model_without_values_knows_its_channels(family):
    with torch.device("meta"):
        lmm = build(family, tokenizer=None)
    real = build(family)
    for name in (
        "attention_channels",
        "hidden_size",
        "num_layers",
        "vision_channels",
        "patch_size",
        "vision_grid",
    ):
        assert getattr(lmm, name) == getattr(real, name), name


def test_no_text_brings_an_image_or_ends_a_turn(family):
    lmm = build(family)
    sample = make_sample(0, image_size=(120, 120))
    words = written_words(lmm)
    assert lmm.processor.image_token in words
    for word in sorted({*words, *lmm.processor.control_words}):
        for changed in (
            replace(sample, prompt=f"what {word} is it ?"),
            replace(sample, text=f"{sample.text} {word}"),
            replace(sample, turns=(Turn(f"a {word} ?", "no"),)),
            replace(sample, turns=(Turn("a star ?", f"no {word}"),)),
        ):
            with pytest.raises(DataError, match="tiny/0"):
                lmm.prepare(changed)


def written_words(lmm: LMM) -> set[str]:
    """Special tokens of the tokenizer that a conversation about an image is written with."""
    tokenizer, template = lmm.processor.tokenizer, lmm.processor.template
    written = lmm.processor.prompt("") + template.later + (template.turn_end or tokenizer.eos_token)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    image = tokenizer.convert_ids_to_tokens(lmm.family.config.image_token_id)
    return {image, *(word for word in special if word in written)}


def test_images_of_extreme_shapes_are_read_or_refused(family):
    lmm = build(family)
    rng = np.random.default_rng(0)
    ordinary = [(7, 7), (64, 65), (147, 90), (60, 98)]
    for size in ((1, 1), (2, 300), (300, 2), (333, 20), *ordinary):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        sample = replace(make_sample(0, with_masks=False), image=image)
        try:
            item = lmm.prepare(sample)
        except DataError:
            assert size not in ordinary
            continue
        assert int(item.image_mask.sum()) == item.grid.num_tokens
        assert lmm.encode([item], CaptureSpec(attention=True)).attention[0].isfinite().all()


def test_the_family_is_registered_and_refuses_what_is_not_its_own(family, tmp_path):
    lmm = build(family)
    assert MODELS.get(type(lmm).__name__) is type(lmm)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="bert"):
        type(lmm).from_pretrained(str(tmp_path))
