"""Step 1 (groups isolated, the sequence as it was), and what retention does with isolated groups."""

from __future__ import annotations

import pytest
import torch
from cached_parts import SCREEN_BOX, boxed_sample, cached_llava, endless, screens

from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.regions.sources import NoRegions, Partitioner
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.models import GroundingLMM
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.structures import CaptureSpec, Phrase

EVERYTHING = CaptureSpec(attention=True, hidden="all", logits=True)
SCHEMES = pytest.mark.parametrize("positions", ["packed", "raster"])


@SCHEMES
@torch.no_grad()
def test_without_objects_it_is_the_llava(positions):
    model = cached_llava(order="image", positions=positions, partitioner=Partitioner(NoRegions()))
    sample = boxed_sample(0)
    item = model.prepare(sample)
    assert torch.equal(model.prompt_parts(item).plan.position_ids, torch.arange(len(item.input_ids)))
    ours = model.encode([item], EVERYTHING)
    plain = model.lmm.encode([model.lmm.prepare(sample)], EVERYTHING)
    torch.testing.assert_close(ours.logits[0], plain.logits[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.attention[0], plain.attention[0], rtol=0, atol=1e-5)
    assert model.generate(sample, max_new_tokens=8) == model.lmm.generate(sample, max_new_tokens=8)


@SCHEMES
@pytest.mark.parametrize("letterbox", ["background", "drop"])
@pytest.mark.parametrize("projectors", ["shared", "separate"])
def test_answers_have_the_states_of_the_training_pass(positions, letterbox, projectors):
    model = endless(
        cached_llava(order="image", positions=positions, letterbox=letterbox, projectors=projectors)
    )
    generation = model.generate_with_states(
        boxed_sample(1, image_size=(24, 72)), EVERYTHING, max_new_tokens=8
    )
    spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    phrases = [Phrase((spans[0],)), Phrase((spans[1],))]
    ours = model.states_of_phrases(generation, phrases)
    with torch.no_grad():
        theirs = model.encode([phrase_inputs(generation, phrases)], EVERYTHING)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-5, atol=5e-5)
    assert torch.equal(theirs.logits[0][: len(generation.token_ids)].argmax(-1), generation.token_ids)


@torch.no_grad()
def test_it_differs_from_the_next_step_in_the_order_alone():
    image, background = cached_llava(order="image"), cached_llava()
    item = image.prepare(boxed_sample(0))
    part, other = image.prompt_parts(item), background.prompt_parts(item)
    features = image.isolated_features(item)
    ours = image.image_order_embeds(features, part)[part.plan.columns]
    prefix = background.prefix_embeds(other.system_ids, features[other.background])
    suffix = background.suffix_embeds(features[other.objects], other.text_ids)
    theirs = torch.cat([prefix, suffix])[other.plan.columns]
    torch.testing.assert_close(ours, theirs)
    # In the raster scheme patches are as far from each other and from the text as in the LLaVA.
    ours, theirs = part.plan.position_ids[part.plan.columns], other.plan.position_ids[other.plan.columns]
    assert torch.equal(ours - part.plan.position_ids[0], theirs - 2)


def test_nothing_of_it_can_be_cached():
    model = cached_llava(order="image")
    session = StreamSession(model, BackgroundCache(CacheSettings(min_tiles=1)))
    image, meta = screens(1)[0], {"objects_xyxy": SCREEN_BOX}
    assert session.ask(image, cache="off", max_new_tokens=2, meta=meta).level == "off"
    with pytest.raises(ConfigError, match="no prefix to keep"):
        session.ask(image, meta=meta)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(order="text"),
        dict(order="image", train=("separators",)),
        dict(order="image", prefusion=PreFusion(1)),
        dict(order="image", prefusion=PreFusion(1, 2)),
    ],
)
def test_wrong_settings_are_named(arguments):
    with pytest.raises(ConfigError, match="order"):
        cached_llava(**arguments)


def model_of(retention: str | None = None, **arguments) -> GroundingLMM:
    return GroundingLMM(cached_llava(**arguments), heads=dict(language=LanguageHead()), retention=retention)


def test_isolated_groups_answer_for_themselves_unless_switched():
    sample = boxed_sample(0)
    model = model_of()
    assert model.retention.mode == "always"
    assert model.answer(sample, max_new_tokens=8) == model.lmm.generate(sample, max_new_tokens=8)
    assert model.answer(sample, max_new_tokens=8) != model.lmm.lmm.generate(sample, max_new_tokens=8)
    switched = model_of("switched", train=("separators",))
    assert switched.answer(sample, max_new_tokens=8) == model.lmm.lmm.generate(sample, max_new_tokens=8)
    with pytest.raises(ConfigError, match="isolated groups"):
        model_of("frozen")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (dict(train=("separators",)), True),
        (dict(train=("projectors",), projectors="separate"), True),
        (dict(train=("prefusion",), prefusion=PreFusion(1)), True),
        (dict(frozen=False, lora=dict(llm=dict(r=2, alpha=4)), train=("separators",)), True),
        (dict(train=("projectors",)), False),
        (dict(train_layers=1), False),
        (dict(frozen=False), False),
    ],
)
def test_the_llava_is_there_unless_its_own_weights_are_trained(arguments, kept):
    assert model_of(**arguments).retention.keeps_base == kept
    if kept:
        assert model_of("switched", **arguments).retention.mode == "switched"
    else:
        with pytest.raises(ConfigError, match="is lost"):
            model_of("switched", **arguments)


def test_merged_lora_is_part_of_the_llava():
    model = model_of(frozen=False, lora=dict(llm=dict(r=2, alpha=4)))
    model.lmm.merge_lora()
    assert not model.retention.keeps_base
