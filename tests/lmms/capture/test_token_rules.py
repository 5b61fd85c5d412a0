"""generation_config.json is obeyed alike by ``generate``, answers with states and answers of the cache."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens
from tiny import make_sample, tiny_llava, tiny_llava_next
from tokenizers import decoders
from transformers import GenerationConfig
from transformers_version import TRANSFORMERS_5

from flmm_detseg.cache import BackgroundCache, CacheSettings, StreamSession
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.lmms.capture import greedy_answer, token_rules
from flmm_detseg.structures import CaptureSpec

NUM_TOKENS = 10
ALL = CaptureSpec(attention=True, hidden="all")
# First tokens of the answer under the unchanged config, and what follows from them.
FIELDS = {
    "repetition_penalty": dict(repetition_penalty=3.0),
    "encoder_repetition_penalty": dict(encoder_repetition_penalty=0.2),
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=1),
    "encoder_no_repeat_ngram_size": dict(encoder_no_repeat_ngram_size=1),
    "suppress_tokens": dict(suppress_tokens=None),
    "begin_suppress_tokens": dict(begin_suppress_tokens=None),
    "bad_words_ids": dict(bad_words_ids=None),
    "sequence_bias": dict(sequence_bias=None),
    "forced_bos_token_id": dict(forced_bos_token_id=9),
    "forced_eos_token_id": dict(forced_eos_token_id=2),
    "min_length": dict(min_length=100, eos_token_id=None),
    "min_new_tokens": dict(min_new_tokens=6, eos_token_id=None),
    "exponential_decay_length_penalty": dict(exponential_decay_length_penalty=(2, 50.0)),
    "watermarking_config": dict(watermarking_config=dict(greenlist_ratio=0.3, bias=50.0)),
    "stop_strings": dict(stop_strings=None),
    "renormalize_logits": dict(renormalize_logits=True),
    "remove_invalid_values": dict(remove_invalid_values=True),
}
CHANGE_NOTHING = ["renormalize_logits", "remove_invalid_values", "forced_bos_token_id"]
if TRANSFORMERS_5:  # reads these for models with an encoder only
    CHANGE_NOTHING += ["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"]


def spelling(adapter):
    """With a tokenizer that joins pieces of words: transformers' stop strings need one."""
    adapter.processor.tokenizer = deepcopy(adapter.processor.tokenizer)
    adapter.processor.tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return adapter


@pytest.fixture(scope="module")
def adapter():
    return spelling(tiny_llava())


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Warnings."""
    texts: list[str] = []
    monkeypatch.setattr(token_rules, "print_log", lambda text, *_: texts.append(text))
    return texts


@pytest.fixture(scope="module")
def default(adapter) -> list[int]:
    return adapter.generate_with_states(
        make_sample(1), CaptureSpec(), max_new_tokens=NUM_TOKENS
    ).token_ids.tolist()


def with_fields(adapter, name: str, answer: list[int], monkeypatch) -> None:
    """Sets a field of the generation config, to a value that changes this answer."""
    fields = dict(FIELDS[name])
    decode = adapter.processor.tokenizer.decode
    first, text = answer[0], decode(answer[:4]).removeprefix(decode(answer[:3])).strip()
    fill = {
        "suppress_tokens": answer[:2],
        "begin_suppress_tokens": [first],
        "bad_words_ids": [[answer[1]]],
        "sequence_bias": [[[answer[1]], -100.0]],
        "stop_strings": [text],
        "eos_token_id": answer[1],
    }
    fields = {key: fill[key] if value is None else value for key, value in fields.items()}
    config = GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **fields})
    monkeypatch.setattr(adapter.model, "generation_config", config)


def transformers_tokens(adapter, sample) -> list[int]:
    item = adapter.processor.question(sample)
    ids = adapter.model.generate(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids)),
        **adapter.own_inputs(item),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        tokenizer=adapter.processor.tokenizer,
    )
    return ids[0, len(item.input_ids) :].tolist()


@pytest.mark.case("model/generation_config")
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_generation_config_is_obeyed_everywhere(name, adapter, default, monkeypatch):
    with_fields(adapter, name, default, monkeypatch)
    sample = make_sample(1)
    wanted = transformers_tokens(adapter, sample)
    assert (wanted != default) == (name not in CHANGE_NOTHING), "the field shows nothing"
    found = adapter.generate_with_states(sample, ALL, max_new_tokens=NUM_TOKENS)
    assert found.token_ids.tolist() == wanted
    assert found.attention.shape[1] == found.hidden.shape[1] == len(wanted)
    assert adapter.generate(sample, max_new_tokens=NUM_TOKENS) == found.text


def test_every_field_of_the_list_is_tried():
    assert set(FIELDS) == set(token_rules._OBEYED)


@pytest.mark.case("model/generation_config")
def test_every_field_of_transformers_is_accounted_for():
    """A field that a new version brings is obeyed, named, or known to change nothing."""
    without_effect = set(
        """max_length max_new_tokens early_stopping do_sample temperature top_k top_p min_p typical_p epsilon_cutoff
        eta_cutoff length_penalty use_cache cache_implementation cache_config return_legacy_cache prefill_chunk_size
        output_attentions output_hidden_states output_scores output_logits return_dict_in_generate pad_token_id
        bos_token_id eos_token_id decoder_start_token_id is_assistant num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind
        target_lookbehind compile_config disable_compile low_memory transformers_version""".split()
    )
    new = "assistant_ensemble_weight continuous_batching_config max_cache_len speculation_type top_h use_mtp".split()
    if TRANSFORMERS_5:
        without_effect = {*without_effect, *new} - {"return_legacy_cache"}
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known == without_effect | set(token_rules._OBEYED) | set(token_rules._OTHER_ANSWERS)


@pytest.mark.case("model/generation_config")
def test_fields_without_effect_change_nothing(adapter, default, monkeypatch):
    odd = dict(do_sample=True, temperature=5.0, num_beams=3, guidance_scale=2.0, return_dict_in_generate=True)
    odd |= dict(
        output_scores=True, max_length=3, cache_implementation="static", num_return_sequences=2, max_time=0.0
    )
    monkeypatch.setattr(adapter.model, "generation_config", GenerationConfig(eos_token_id=2, **odd))
    found = adapter.generate_with_states(make_sample(1), CaptureSpec(), max_new_tokens=NUM_TOKENS)
    assert found.token_ids.tolist() == default
    assert adapter.generate(make_sample(1), max_new_tokens=NUM_TOKENS) == found.text


@pytest.mark.case("model/generation_config")
def test_two_grids_and_several_fields(monkeypatch):
    adapter, sample = tiny_llava_next(), make_sample(2, image_size=(90, 30))
    for name, value in dict(repetition_penalty=1.7, no_repeat_ngram_size=2, min_new_tokens=4).items():
        setattr(adapter.model.generation_config, name, value)
    found = adapter.generate_with_states(sample, CaptureSpec(), max_new_tokens=NUM_TOKENS)
    assert found.token_ids.tolist() == transformers_tokens(adapter, sample)
    assert found.text == adapter.generate(sample, max_new_tokens=NUM_TOKENS)


@pytest.mark.case("model/generation_config")
def test_answers_of_the_cache_obey_too(monkeypatch):
    """Hits, cold runs and answers with rows, alike."""
    model = spelling(cached_llava())
    image = screens(1)[0]
    session = StreamSession(model, BackgroundCache(CacheSettings(min_tiles=1, admission="always")))
    meta = {"objects_xyxy": SCREEN_BOX}

    def ask(**options):
        return session.ask(image, "a star ?", meta=meta, max_new_tokens=NUM_TOKENS, **options)

    before = ask().token_ids
    config = model.model.generation_config
    monkeypatch.setattr(config, "suppress_tokens", [before[0]])
    monkeypatch.setattr(config, "no_repeat_ngram_size", 1)
    pieces = []
    answers = [ask(), ask(cache="off"), ask(capture=ALL, on_text=pieces.append)]
    assert answers[0].level == "L2", "nothing was cached"
    assert len({answer.token_ids for answer in answers}) == 1
    tokens = answers[0].token_ids
    prompt = model.processor.question(session._sample(image, "a star ?", meta, ())).input_ids.tolist()
    assert before[0] not in tokens
    assert len(set(tokens)) == len(tokens)
    assert not set(tokens) & set(prompt)
    assert answers[2].generation.token_ids.tolist() == list(tokens)
    assert "".join(pieces).strip() == answers[2].text
    decode = model.processor.tokenizer.decode
    stop = decode(tokens[:3]).removeprefix(decode(tokens[:2])).strip()
    monkeypatch.setattr(config, "stop_strings", [stop])
    assert ask().token_ids == tokens[:3]
    monkeypatch.setattr(config, "stop_strings", None)
    seen = []
    monkeypatch.setattr(greedy_answer, "answer_room", lambda *given: seen.append(given) or 4)
    assert ask().token_ids == tokens[:4]
    assert seen[0][1:3] == (model.position_limit, NUM_TOKENS) == (1024, NUM_TOKENS)


@pytest.mark.case("model/generation_config")
def test_what_is_not_obeyed_is_named_when_the_model_is_loaded(adapter, monkeypatch, said):
    config = GenerationConfig(eos_token_id=2, num_beams=4, guidance_scale=1.5)
    monkeypatch.setattr(adapter.model, "generation_config", config)
    LlavaAdapter(adapter.model, adapter.processor)
    assert "guidance_scale=1.5, num_beams=4" in said[0]


@pytest.mark.case("model/generation_config")
@pytest.mark.parametrize(
    "fields",
    [
        dict(repetition_penalty=-1.0),
        dict(sequence_bias=[[[5000], 1.0]]),
        pytest.param(
            dict(bad_words_ids=[[]]),
            marks=pytest.mark.skipif(TRANSFORMERS_5, reason="transformers 5 takes it for no word at all"),
        ),
        dict(stop_strings=5),
    ],
)
def test_values_that_cannot_be_obeyed_are_refused(fields, adapter, monkeypatch):
    config = GenerationConfig(eos_token_id=2)
    for name, value in fields.items():
        setattr(config, name, value)
    monkeypatch.setattr(adapter.model, "generation_config", config)
    with pytest.raises(ConfigError, match=f"generation_config.json cannot be obeyed.*{next(iter(fields))}"):
        LlavaAdapter(adapter.model, adapter.processor)


@pytest.mark.case("model/generation_config")
def test_where_there_are_no_values_only_shapes_matter(adapter, monkeypatch):
    """Rules look at values, which the meta device has none of."""
    with torch.device("meta"):
        model = type(adapter.model)(adapter.model.config)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=2, no_repeat_ngram_size=3))
    assert LlavaAdapter(model, adapter.processor).model.device.type == "meta"


@pytest.mark.case("model/model_facts")
def test_an_answer_ends_where_the_positions_end(adapter, default, monkeypatch, said):
    sample = make_sample(1)
    length = len(adapter.processor.question(sample).input_ids)
    monkeypatch.setattr(adapter.model.config.text_config, "max_position_embeddings", length + 4)
    settings = dataclasses.replace(adapter.processor.settings, max_length=length + 4)
    monkeypatch.setattr(adapter.processor, "settings", settings)
    short = LlavaAdapter(adapter.model, adapter.processor)
    found = short.generate_with_states(sample, CaptureSpec(), max_new_tokens=NUM_TOKENS)
    assert short.generate(sample, max_new_tokens=NUM_TOKENS) == found.text
    assert [text.partition(":")[0] for text in said] == ["an answer was cut after 4 of at most 10 tokens"] * 2
    assert found.token_ids.tolist() == default[:4]
    settings = dataclasses.replace(settings, max_length=length)
    monkeypatch.setattr(adapter.processor, "settings", settings)
    monkeypatch.setattr(adapter.model.config.text_config, "max_position_embeddings", length)
    full = LlavaAdapter(adapter.model, adapter.processor)
    for answer in (full.generate, lambda item: full.generate_with_states(item, ALL)):
        with pytest.raises(DataError, match="tiny/1: .*no room for an answer"):
            answer(sample)


def test_no_rules_no_work(adapter):
    """The unchanged config: tokens are chosen as before, without copies of logits."""
    ids = torch.arange(4)
    assert token_rules.token_rules(adapter.model, adapter.processor.tokenizer, ids, 5) is None
