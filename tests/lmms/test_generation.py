"""Answers with states: the same tokens as plain generation, the same states as teacher forcing."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from tiny import make_sample, tiny_llava, tiny_llava_next, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from flmm_detseg.errors import ConfigError, PhraseNotFoundError, PhraseWithoutTokensError
from flmm_detseg.language import parse_answer, score_detections
from flmm_detseg.lmms.capture.answer_text import phrase_inputs, text_and_offsets
from flmm_detseg.lmms.capture.row_tap import ROW_TAP
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.structures import CaptureSpec, Phrase

EVERYTHING = CaptureSpec(attention=True, hidden="all", vision_layers=(0, 2), logits=True)
LORA = dict(vision=dict(r=2, alpha=4), llm=dict(r=2, alpha=4))
BUILDERS = pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])
NUM_TOKENS = 12


@torch.no_grad()
def adapted(build, **arguments):
    """An adapter with LoRA that is no longer zero."""
    adapter = build(frozen=False, lora=LORA, **arguments)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(adapter.model).values():
        for up in layer.lora_B.values():
            up.weight.copy_(0.3 * torch.randn(up.weight.shape, generator=generator))
    return adapter


def some_phrases(generation) -> list[Phrase]:
    """One token, several tokens, two parts, overlapping; all with visible characters."""
    spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    assert len(spans) >= 8
    wide = (spans[1][0], spans[4][1])
    return [Phrase((spans[0],)), Phrase((wide,)), Phrase((spans[2], spans[-1]))]


def scripted(adapter, text: str) -> None:
    """Makes the language head spell a text, then end."""
    script = [*adapter.processor.tokenizer(text, add_special_tokens=False).input_ids, 2]

    def push(_, __, logits):
        pushed = logits.clone()
        pushed[..., script[min(push.step, len(script) - 1)]] = logits.amax() + 1
        push.step += 1
        return pushed

    push.step = 0
    adapter.model.lm_head.register_forward_hook(push)


@BUILDERS
@pytest.mark.parametrize("make", [lambda build, **a: build(**a), adapted], ids=["frozen", "lora"])
@pytest.mark.parametrize("merge", ["mean", "max"])
def test_states_are_those_of_teacher_forcing(build, make, merge):
    adapter = make(build, rows=dict(merge=merge))
    generation = adapter.generate_with_states(make_sample(1), EVERYTHING, max_new_tokens=NUM_TOKENS)
    assert generation.attention.shape[1] == generation.hidden.shape[1] == len(generation.token_ids)
    phrases = some_phrases(generation)
    ours = adapter.states_of_phrases(generation, phrases)
    with torch.no_grad():
        item = phrase_inputs(generation, phrases)
        theirs = adapter.encode([item], EVERYTHING)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-5, atol=2e-5)
    assert torch.equal(ours.hidden[0].phrase_ids, theirs.hidden[0].phrase_ids)
    for layer, maps in theirs.vision[0].items():
        torch.testing.assert_close(ours.vision[0][layer], maps, rtol=0, atol=1e-5)
    logits = theirs.logits[0][: len(generation.token_ids)]
    expected = logits.log_softmax(-1).gather(1, generation.token_ids[:, None])[:, 0]
    torch.testing.assert_close(generation.log_probs, expected, rtol=0, atol=2e-5)
    assert not ours.attention[0].requires_grad
    assert not ours.hidden[0].states.requires_grad


@BUILDERS
def test_chosen_hidden_layers_are_those_of_all(build):
    adapter, sample = build(), make_sample(1)
    last = adapter.num_layers
    whole = adapter.generate_with_states(sample, CaptureSpec(hidden="all"), max_new_tokens=NUM_TOKENS)
    some = adapter.generate_with_states(sample, CaptureSpec(hidden=(1, last)), max_new_tokens=NUM_TOKENS)
    assert whole.hidden_layers == tuple(range(1, last + 1))
    assert some.hidden_layers == (1, last)
    assert torch.equal(some.hidden, whole.hidden[[0, -1]])
    (rows,) = adapter.states_of_phrases(some, some_phrases(some)).hidden
    (every,) = adapter.states_of_phrases(whole, some_phrases(some)).hidden
    assert rows.layers == (1, last)
    assert torch.equal(rows.states, every.of((1, last)))
    with pytest.raises(ConfigError, match="do not exist; the language model has layers"):
        adapter.generate_with_states(sample, CaptureSpec(hidden=(last + 1,)))


@BUILDERS
def test_subsets_of_layers_and_heads(build):
    adapter = build(rows=dict(layers=[1], heads=[0, 3]))
    generation = adapter.generate_with_states(
        make_sample(1), CaptureSpec(attention=True), max_new_tokens=NUM_TOKENS
    )
    phrases = some_phrases(generation)
    assert (len(generation.attention), generation.hidden, generation.vision) == (2, None, None)
    ours = adapter.states_of_phrases(generation, phrases)
    theirs = adapter.encode([phrase_inputs(generation, phrases)], CaptureSpec(attention=True))
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    assert ours.hidden is None
    assert ours.vision is None


@BUILDERS
@pytest.mark.parametrize("make", [lambda build: build(), adapted], ids=["frozen", "lora"])
def test_tokens_and_text_are_those_of_plain_generation(build, make):
    adapter = make(build)
    for sample in (make_sample(1, prompt="a red star ?"), make_sample(2, image_size=(90, 30))):
        item = adapter.processor.question(sample)
        with torch.no_grad():
            ids = adapter.model.generate(
                input_ids=item.input_ids[None],
                attention_mask=torch.ones(1, len(item.input_ids)),
                **adapter.own_inputs(item),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
            )[0, len(item.input_ids) :]
        for capture in (EVERYTHING, CaptureSpec()):
            generation = adapter.generate_with_states(sample, capture, max_new_tokens=NUM_TOKENS)
            assert torch.equal(generation.token_ids, ids)
            text = adapter.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert generation.text == adapter.generate(sample, max_new_tokens=NUM_TOKENS) == text
        short = adapter.generate_with_states(sample, EVERYTHING, max_new_tokens=1)
        assert short.token_ids.tolist() == ids[:1].tolist()
        assert short.attention.shape[1] == 1


def test_base_mode_answers_as_the_lmm_without_lora():
    plain, lora = tiny_llava(), adapted(tiny_llava)
    sample = make_sample(1)
    expected = plain.generate_with_states(sample, EVERYTHING, max_new_tokens=NUM_TOKENS)
    changed = lora.generate_with_states(sample, EVERYTHING, max_new_tokens=NUM_TOKENS)
    assert not torch.equal(changed.token_ids, expected.token_ids)
    with lora.base_mode():
        answer = lora.generate(sample, max_new_tokens=NUM_TOKENS)
        base = lora.generate_with_states(sample, EVERYTHING, max_new_tokens=NUM_TOKENS)
        assert lora.model.config.text_config._attn_implementation == "sdpa"
    assert base.text == answer == expected.text
    for name in ("token_ids", "log_probs", "attention", "hidden"):
        assert torch.equal(getattr(base, name), getattr(expected, name)), name
    assert lora.model.config.text_config._attn_implementation == ROW_TAP


def test_the_sequence_runs_once():
    adapter = tiny_llava()
    lengths = []
    adapter.model.model.language_model.layers[0].register_forward_hook(
        lambda _, __, output: lengths.append(output.shape[1])
    )
    question = adapter.processor.question(make_sample(1))
    generation = adapter.generate_with_states(make_sample(1), EVERYTHING, max_new_tokens=NUM_TOKENS)
    adapter.states_of_phrases(generation, some_phrases(generation))
    assert lengths == [len(question.input_ids)] + [1] * len(generation.token_ids)


def test_the_end_token_ends_and_has_a_row():
    adapter = tiny_llava()
    scripted(adapter, "a red star .")
    generation = adapter.generate_with_states(make_sample(1), EVERYTHING)
    assert generation.text == "a red star ."
    assert generation.token_ids.tolist()[-1] == 2
    assert generation.token_offsets == ((0, 1), (1, 5), (5, 10), (10, 12), (12, 12))
    assert generation.attention.shape[1] == generation.hidden.shape[1] == 5


def test_rows_keep_the_dtype_of_the_model():
    adapter = tiny_llava(dtype="bfloat16")
    generation = adapter.generate_with_states(make_sample(1), EVERYTHING, max_new_tokens=NUM_TOKENS)
    assert generation.attention.dtype == generation.hidden.dtype == torch.bfloat16
    phrases = some_phrases(generation)
    ours = adapter.states_of_phrases(generation, phrases).attention[0]
    theirs = adapter.encode([phrase_inputs(generation, phrases)], CaptureSpec(attention=True)).attention[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)


def test_no_phrases_and_wrong_phrases():
    adapter = tiny_llava()
    scripted(adapter, "a red star .")
    generation = adapter.generate_with_states(make_sample(1), EVERYTHING)
    none = adapter.states_of_phrases(generation, [])
    assert none.attention[0].shape == (0, 12, 4, 4)
    assert none.hidden[0].states.shape == (3, 0, 32)
    with pytest.raises(PhraseNotFoundError, match=r"tiny/1: span \(0, 99\)"):
        adapter.states_of_phrases(generation, [Phrase(((0, 99),))])
    with pytest.raises(PhraseWithoutTokensError, match=r"tiny/1: phrases \[0\]"):
        adapter.states_of_phrases(generation, [Phrase(((1, 2),))])
    with pytest.raises(ConfigError, match="max_new_tokens"):
        adapter.generate_with_states(make_sample(1), EVERYTHING, max_new_tokens=0)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: several of them spell one character of most scripts."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def sentence_tokenizer() -> PreTrainedTokenizerFast:
    """Spaces belong to words and the first one is dropped, unknown characters are bytes, as in LLaMA."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁dog", "s", "'", ".", "▁café"]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def pieces(text, offsets):
    return [text[start:end] for start, end in offsets]


def assert_covers(text: str, offsets) -> None:
    """Starts and ends never fall, and no character is left out."""
    assert all(a <= c and b <= d for (a, b), (c, d) in zip(offsets, offsets[1:]))
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))


def test_offsets_where_bytes_spell_a_character():
    tokenizer = byte_tokenizer()
    text, offsets = text_and_offsets(tokenizer(" 狗 aé\n").input_ids, tokenizer.decode)
    assert text == "狗 aé"
    assert pieces(text, offsets) == ["", "狗", "狗", "狗", " ", "a", "é", "é", ""]
    assert_covers(text, offsets)
    # A character that never ends is what the decoder makes of it.
    broken, offsets = text_and_offsets(tokenizer("a狗").input_ids[:-1], tokenizer.decode)
    assert broken == tokenizer.decode(tokenizer("a狗").input_ids[:-1])
    assert_covers(broken, offsets)


def test_offsets_where_words_carry_their_space():
    tokenizer = sentence_tokenizer()
    words = ["▁a", "▁dog", "'", "s", "▁café", "▁", "<0xE7>", "<0x8B>", "<0x97>", "."]
    text, offsets = text_and_offsets(tokenizer.convert_tokens_to_ids(words), tokenizer.decode)
    assert text == "a dog's café 狗."
    assert pieces(text, offsets) == ["a", " dog", "'", "s", " café", " ", "狗", "狗", "狗", "."]
    assert_covers(text, offsets)


def test_offsets_where_the_decoder_removes_spaces():
    tokenizer = deepcopy(tiny_tokenizer())
    decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    ids = tokenizer.convert_tokens_to_ids(["a", "star", "<pad>", ",", "a", "ring", ".", "</s>"])
    text, offsets = text_and_offsets(ids, decode)
    assert text == "a star, a ring."
    assert pieces(text, offsets) == ["a", " star", "", ",", " a", " ring", ".", ""]
    assert_covers(text, offsets)
    assert text_and_offsets([], decode) == ("", ())


@BUILDERS
def test_offsets_reassemble_generated_text(build):
    for seed in range(3):
        generation = build(seed=seed).generate_with_states(
            make_sample(seed), CaptureSpec(), max_new_tokens=30
        )
        assert_covers(generation.text, generation.token_offsets)
        assert "".join(pieces(generation.text, generation.token_offsets)) == generation.text


def test_boxes_of_an_answer_get_their_tokens_probabilities():
    """From generation to scores: what average precision needs of text."""
    adapter = tiny_llava()
    adapter.processor.tokenizer = deepcopy(adapter.processor.tokenizer)
    adapter.processor.tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=False)
    scripted(adapter, "Detections: star [12, 40, 380, 912]; ring [1, 2, 3, 4]")
    generation = adapter.generate_with_states(make_sample(1), CaptureSpec(), max_new_tokens=100)
    parsed = parse_answer(generation.text)
    scored = score_detections(parsed, generation.log_probs, generation.token_offsets)
    assert [box.label for box in scored.detections] == ["star", "ring"]
    assert [box.box for box in scored.detections] == [(12, 40, 380, 912), (1, 2, 3, 4)]
    for box, span in zip(scored.detections, parsed.detection_spans, strict=True):
        inside = [
            index
            for index, (start, end) in enumerate(generation.token_offsets)
            if any(max(start, a) < min(end, b) for a, b in span.values)
        ]
        assert len(inside) == sum(len(str(value)) for value in box.box)
        assert box.score == pytest.approx(float(generation.log_probs[inside].double().mean().exp()))
        assert 0 < box.score < 1
