"""CachedLMM as an adapter: one forward for training and answers, rows in image order, unmodified in base mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import boxed_sample, cached_llava, endless
from tiny import mixed_samples, tiny_llava, tiny_llava_next, tiny_tokenizer

from flmm_detseg.cache.cached_lmm import CachedLMM
from flmm_detseg.cache.regions.sources import GivenRegions, NoRegions, Partitioner
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms import LlavaAdapter, parameter_report
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.lmms.capture.packing import image_columns
from flmm_detseg.models import GroundingLMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec, Phrase
from flmm_detseg.structures.partition import OBJ

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(0, 2), logits=True, likelihood=True)
SCHEMES = pytest.mark.parametrize("positions", ["packed", "raster"])
LETTERBOX = pytest.mark.parametrize("letterbox", ["background", "drop"])
PROJECTORS = pytest.mark.parametrize("projectors", ["shared", "separate"])


def samples() -> list:
    return [
        boxed_sample(0, image_size=(48, 72)),
        boxed_sample(1, image_size=(90, 30), num_phrases=1),
        boxed_sample(2, image_size=(56, 56), num_phrases=3),
    ]


def some_phrases(generation) -> list[Phrase]:
    spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    return [Phrase((spans[0],)), Phrase(((spans[1][0], spans[3][1]),))]


@SCHEMES
@LETTERBOX
@PROJECTORS
def test_answers_have_the_states_of_teacher_forcing(positions, letterbox, projectors):
    model = endless(cached_llava(positions=positions, letterbox=letterbox, projectors=projectors))
    generation = model.generate_with_states(
        boxed_sample(1, image_size=(24, 72)), EVERYTHING, max_new_tokens=10
    )
    phrases = some_phrases(generation)
    ours = model.states_of_phrases(generation, phrases)
    with torch.no_grad():
        theirs = model.encode([phrase_inputs(generation, phrases)], EVERYTHING)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-5, atol=5e-5)
    for layer, maps in theirs.vision[0].items():
        torch.testing.assert_close(ours.vision[0][layer], maps, rtol=0, atol=1e-5)
    logits = theirs.logits[0][: len(generation.token_ids)]
    assert torch.equal(logits.argmax(-1), generation.token_ids)
    expected = logits.log_softmax(-1).gather(1, generation.token_ids[:, None])[:, 0]
    torch.testing.assert_close(generation.log_probs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.likelihood[0], theirs.likelihood[0], rtol=0, atol=1e-4)


@SCHEMES
@LETTERBOX
@torch.no_grad()
def test_attention_maps_are_those_of_the_whole_matrix(positions, letterbox):
    model = cached_llava(positions=positions, letterbox=letterbox)
    item = model.prepare(boxed_sample(0, image_size=(24, 72)))
    ours = model.encode([item], CaptureSpec(attention=True)).attention[0]
    part = model.prompt_parts(item)
    features = model.group_features(item, part.background), model.group_features(item, part.objects)
    embeds = torch.cat(
        [model.prefix_embeds(part.system_ids, features[0]), model.suffix_embeds(features[1], part.text_ids)]
    )
    assert len(embeds) == part.plan.length
    with model.lmm._text_attention("eager"):
        full = model.model.model.language_model(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds)),
            position_ids=part.plan.position_ids[None],
            output_attentions=True,
        ).attentions
    # The phrase of sample 0 that comes first: its tokens, counted from the end of both sequences.
    tokens = item.phrase_tokens[0].nonzero().flatten() - len(item.input_ids) + part.plan.length
    stack = torch.cat([layer[0][:, tokens].mean(1) for layer in full])
    for patch in range(16):
        column = int(part.plan.columns[patch])
        expected = stack[:, column] if column >= 0 else torch.zeros(len(stack))
        torch.testing.assert_close(ours[0, :, patch // 4, patch % 4], expected, rtol=0, atol=1e-5)
    assert bool((part.plan.columns < 0).any()) == (letterbox == "drop")


@torch.no_grad()
def test_batches_equal_single_samples():
    model = cached_llava()
    items = [model.prepare(sample) for sample in samples()]
    together = model.encode(items, EVERYTHING)
    for index, item in enumerate(items):
        alone = model.encode([item], EVERYTHING)
        torch.testing.assert_close(together.attention[index], alone.attention[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(together.likelihood[index], alone.likelihood[0], rtol=0, atol=1e-4)
        hidden = together.hidden[index], alone.hidden[0]
        torch.testing.assert_close(hidden[0].states, hidden[1].states, rtol=1e-5, atol=5e-5)
        assert torch.equal(hidden[0].phrase_ids, hidden[1].phrase_ids)
        assert together.logits_start[index] == alone.logits_start[0] == item.prefix_length - 1
        for layer in (0, 2):
            torch.testing.assert_close(
                together.vision[index][layer], alone.vision[0][layer], rtol=0, atol=1e-5
            )


@torch.no_grad()
def test_several_images_are_refused():
    sample = boxed_sample(0, image_size=(56, 56))
    with pytest.raises(DataError, match="has 2 images"):
        cached_llava().prepare(replace(sample, more_images=(sample.image,)))


def test_background_features_do_not_see_objects():
    model = cached_llava()
    sample = boxed_sample(0, image_size=(56, 56))
    item = model.prepare(sample)
    changed = item.pixel_values.clone()
    for patch in item.partition.objects.tolist():
        y, x = patch // 4 * 14, patch % 4 * 14
        changed[:, y : y + 14, x : x + 14] = 0
    other = item.with_pixels(changed)
    maps = [model.vision_states(found, (2,))[2].flatten(1) for found in (item, other)]
    background = item.partition.background
    assert torch.equal(maps[0][:, background], maps[1][:, background])
    assert not torch.equal(maps[0], maps[1])


@torch.no_grad()
def test_without_objects_features_are_those_of_the_unmodified_model():
    model = cached_llava(partitioner=Partitioner(NoRegions()))
    item = model.prepare(boxed_sample(0))
    assert not (item.partition.group == OBJ).any()
    plain = model.lmm.encode([model.lmm.prepare(boxed_sample(0))], CaptureSpec(vision_layers=(2,)))
    torch.testing.assert_close(model.vision_states(item, (2,))[2], plain.vision[0][2], rtol=1e-6, atol=1e-6)


def test_base_mode_is_the_wrapped_llava():
    model = cached_llava()
    plain = model.lmm
    for boxed in mixed_samples()[:3]:
        boxed.meta["objects_xyxy"] = [[0, 0, 9, 9]]
        with model.base_mode(), torch.no_grad():
            ours = model.encode([model.prepare(boxed)], CaptureSpec(logits=True)).logits[0]
            answer = model.generate(boxed, max_new_tokens=6)
        with plain.base_mode(), torch.no_grad():
            assert torch.equal(ours, plain.encode([plain.prepare(boxed)], CaptureSpec(logits=True)).logits[0])
            assert answer == plain.generate(boxed, max_new_tokens=6)


def test_parameters_keep_the_names_of_the_wrapped_llava():
    model = cached_llava(projectors="separate")
    names, plain = set(model.state_dict()), set(tiny_llava().state_dict())
    own = {name for name in names if not name.startswith("model.")}
    assert names - own == plain
    assert {name.split(".")[0] for name in own} == {"separators", "background_projector", "object_projector"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(train=("separators",)), {"separators"}),
        (dict(train=("separators", "projectors")), {"separators", "multi_modal_projector"}),
        (dict(train=("projectors",), projectors="separate"), {"background_projector", "object_projector"}),
        (dict(train_layers=1), {"layers.2"}),
    ],
)
def test_one_step_trains_what_was_asked_and_nothing_else(arguments, expected):
    model = GroundingLMM(cached_llava(**arguments), heads=dict(language=LanguageHead()))
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        batch = [boxed_sample(index) for index in range(3)]
        batch = [sample.__class__(**{**vars(sample), "task": "vqa", "phrases": ()}) for sample in batch]
        loss, _ = model.parse_losses(model.loss(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert {part for part in expected if any(part in name for name in changed)} == expected
    assert all(any(part in name for part in expected) for name in changed)
    assert losses[-1] < losses[0]


def test_lora_of_the_wrapped_llava_gets_gradients():
    lora = dict(vision=dict(r=2, alpha=4), llm=dict(r=2, alpha=4))
    model = cached_llava(frozen=False, lora=lora, gradient_checkpointing=True, train=("separators",))
    model.train()
    item = model.prepare(boxed_sample(0))
    model.encode([item], CaptureSpec(logits=True)).logits[0].square().sum().backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "separators" in grads
    assert any("vision_tower" in name and "lora_B" in name for name in grads)
    assert any("language_model" in name and "lora_B" in name for name in grads)


def test_checkpoints_hold_what_was_trained_and_reports_name_it():
    def build():
        lmm = cached_llava(projectors="separate", train=("separators", "projectors"))
        return GroundingLMM(lmm, heads=dict(language=LanguageHead()))

    model, other = build(), build()
    stored = {name: value + 1 for name, value in model.trainable_state_dict().items()}
    assert {name.split(".")[1] for name in stored} == {
        "separators",
        "background_projector",
        "object_projector",
    }
    other.load_trainable(stored, "memory")
    assert torch.equal(other.lmm.separators, model.lmm.separators + 1)
    assert other.frozen_fingerprint() == model.frozen_fingerprint()
    with pytest.raises(CheckpointError, match="separators"):
        other.load_trainable({k: v for k, v in stored.items() if "separators" not in k}, "memory")
    report = parameter_report(model)
    assert report.trainable == sum(value.numel() for value in stored.values())


def test_texts_are_cut_so_that_the_longer_sequence_fits():
    model = cached_llava(max_length=60)
    sample = boxed_sample(0)
    sample = sample.__class__(**{**vars(sample), "text": "a " * 100, "phrases": ()})
    item = model.prepare(sample)
    assert model.prompt_parts(item).plan.length == 60
    with pytest.raises(DataError, match="max_length"):
        cached_llava(max_length=30).prepare(sample)


def test_built_from_a_config():
    model = MODELS.build(
        dict(
            type=CachedLMM,
            lmm=dict(
                type=LlavaAdapter.from_config,
                config=tiny_llava().model.config.to_dict(),
                tokenizer=tiny_tokenizer(),
            ),
            partitioner=dict(type=Partitioner, source=dict(type=GivenRegions, kind="meta"), dilate=0),
        )
    )
    assert isinstance(model.generate(boxed_sample(0), max_new_tokens=2), str)
    words = model.class_embeddings(["background", "objects"])
    assert torch.equal(model.separators, words[[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(projectors="two"), "shared, separate"),
        (dict(train=("fusion",)), "separators, projectors, prefusion"),
        (dict(train_layers=4), "has 3 layers"),
        (dict(positions="rope"), "packed, raster"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cached_llava(**arguments)


def test_other_lmms_and_plain_inputs_are_refused():
    partitioner = Partitioner(NoRegions())
    with pytest.raises(ConfigError, match="LLaVA-1.5"):
        CachedLMM(tiny_llava_next(), partitioner)
    lora = dict(vision=dict(r=2, alpha=4, kind="conv_lora"))
    with pytest.raises(ConfigError, match="Conv-LoRA"):
        CachedLMM(tiny_llava(frozen=False, lora=lora), partitioner)
    model = cached_llava()
    with pytest.raises(ConfigError, match="CachedLMM.prepare"):
        model.encode([model.lmm.prepare(boxed_sample(0))], CaptureSpec(logits=True))
    item = model.prepare(boxed_sample(0))
    other = replace(item.partition, group=item.partition.group[:9], grid=(3, 3))
    with pytest.raises(DataError, match=r"groups of 9 patches \(3 x 3\)"):
        model.prompt_parts(item, other)
    assert len(image_columns(model.prepare(boxed_sample(0)))) == 16
