"""Tokens added to every family: rows of their own, an untouched model without them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from same_states import EVERYTHING
from test_conformance import samples
from tiny_families import FAMILIES, LLAMA, build

from flmm_detseg.heads.language_head import distillation
from flmm_detseg.lmms.added.added_tokens import grown_tables, is_added, settle
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.structures import CaptureSpec, Phrase

TOKENS = ("[SEG]", "[REJ]")
LOGITS = CaptureSpec(logits=True)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=["spare rows", "full table"], autouse=True)
def table(request, family, monkeypatch) -> str:
    """Whether the new ids lie within the model's tables or after them."""
    if request.param == "full table":
        monkeypatch.setitem(LLAMA, "vocab_size", len(build(family).processor.tokenizer))
    return request.param


def with_tokens(family: str, **arguments) -> LMM:
    """The same weights as without the tokens."""
    lmm, reference = build(family, added_tokens=TOKENS, **arguments), build(family, **arguments)
    weights = dict(reference.model.named_parameters())
    with torch.no_grad():
        for name, weight in lmm.model.named_parameters():
            if not is_added(name):
                weight.copy_(weights[name if "lora_" in name else plain_name(name, weights)])
    return lmm.eval()


def plain_name(name: str, weights: dict) -> str:
    return name if name in weights else name.replace(".base_layer.", ".")


def spoken():
    """An answer that holds the tokens; its last phrase is the first of them."""
    sample = samples()[0]
    text = f"{sample.text} [SEG] [REJ] [SEG]"
    start = len(sample.text) + 1
    return replace(sample, text=text, phrases=(*sample.phrases, Phrase(((start, start + 5),))), masks=None)


@torch.no_grad()
def test_without_the_tokens_it_is_the_untouched_model_bit_for_bit(family, table):
    lmm, reference = with_tokens(family, lora=dict(llm=dict(r=2))), build(family)
    items = [lmm.prepare(sample) for sample in samples()[:2]]
    expected = reference.encode(items, EVERYTHING)
    with lmm.base_mode():
        inside = lmm.encode(items, EVERYTHING)
        answer = lmm.generate(samples()[0], max_new_tokens=6)
    assert answer == reference.generate(samples()[0], max_new_tokens=6)
    outside = lmm.encode(items, EVERYTHING)
    size = expected.logits[0].shape[-1]
    for ours, theirs, more in zip(inside.logits, expected.logits, outside.logits, strict=True):
        assert torch.equal(ours, theirs)
        # LoRA adds nothing yet: only the tokens' logits are others.
        ids = list(lmm.unembed.ids)
        old = [index for index in range(size) if index not in ids]
        assert torch.equal(more[:, old], theirs[:, old])
        assert more.shape[-1] == max(size, max(ids) + 1)
        assert all(more[:, index].isfinite().all() for index in ids)
        assert distillation(more, theirs, 2.0, lmm.added_ids).abs().max() < 1e-6, "nothing was learned"
    for ours, theirs in zip(outside.attention, expected.attention, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_it_equals_the_model_with_larger_tables(family):
    """An independent computation: transformers' own forward over tables that hold the rows."""
    lmm = with_tokens(family)
    for table in grown_tables(lmm.model):
        for name, rows in table.named_parameters(recurse=False):
            assert is_added(name)
            rows.normal_(generator=torch.Generator().manual_seed(3), std=0.3)
    plain = deepcopy(lmm.model)
    settle(plain)
    assert not grown_tables(plain)
    plain.set_attn_implementation("sdpa")
    item = lmm.prepare(spoken())
    ids = lmm.processor.tokenizer.convert_tokens_to_ids(list(TOKENS))
    assert [int((item.input_ids == token_id).sum()) for token_id in ids] == [2, 1]
    assert item.phrase_tokens[-1].nonzero().flatten().tolist() == [
        int((item.input_ids == ids[0]).nonzero()[0])
    ]
    theirs = plain(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.int64),
        use_cache=False,
        **lmm.own_inputs(item),
    ).logits[0]
    ours = lmm.encode([item], LOGITS)
    torch.testing.assert_close(ours.logits[0], theirs[ours.logits_start[0] :], rtol=1e-4, atol=2e-5)


def test_only_the_new_rows_are_trained_and_all_of_them(family):
    lmm = with_tokens(family).train()
    states = lmm.encode([lmm.prepare(spoken())], LOGITS)
    states.logits[0].log_softmax(-1)[:, -20:].sum().backward()
    trained = {name: weight for name, weight in lmm.named_parameters() if weight.requires_grad}
    assert trained
    for name, weight in trained.items():
        assert is_added(name)
        assert (weight.grad.abs().sum(1) > 0).all()
    assert lmm.keeps_base
    assert lmm.adapted


@torch.no_grad()
def test_answers_can_hold_the_tokens(family, table):
    lmm = with_tokens(family)
    head = lmm.unembed
    head.register_forward_hook(lambda _, __, logits: push(logits, head))
    sample = samples()[0]
    generation = lmm.generate_with_states(sample, CaptureSpec(), max_new_tokens=3)
    assert generation.token_ids.tolist() == [head.ids[0]] * 3
    assert generation.text.count("[SEG]") == 3
    assert lmm.generate(sample, max_new_tokens=3).count("[SEG]") == 3
    if table == "full table":
        with lmm.base_mode():
            assert "[SEG]" not in lmm.generate(sample, max_new_tokens=3)


@torch.no_grad()
def test_in_base_mode_texts_are_those_of_the_untouched_tokenizer(family):
    """Added ids may be rows that the model had to spare: what it says with them is its own affair."""
    lmm, reference = with_tokens(family), build(family)
    sample = replace(samples()[0], prompt="what is [SEG] ?")
    added = lmm.unembed.ids[0]
    with lmm.base_mode(), ThreadPoolExecutor(1) as others:
        inside = lmm.prepare(sample)
        elsewhere = others.submit(lmm.prepare, sample).result()
    assert added in elsewhere.input_ids, "a thread that is not in base mode"
    assert torch.equal(inside.input_ids, reference.prepare(sample).input_ids)
    assert added not in inside.input_ids
    assert added in lmm.prepare(sample).input_ids
    if added >= len(reference.unembed.weight):
        return
    # Both utter a row that no word has, and read it again.
    for module in (lmm.unembed.base_layer, reference.unembed):
        module.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(added), 100.0))
    theirs = reference.generate_with_states(sample, EVERYTHING, max_new_tokens=3)
    with lmm.base_mode():
        ours = lmm.generate_with_states(sample, EVERYTHING, max_new_tokens=3)
        text = lmm.generate(sample, max_new_tokens=3)
    assert theirs.token_ids.tolist() == ours.token_ids.tolist() == [added] * 3
    assert ours.text == theirs.text == text == reference.generate(sample, max_new_tokens=3)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert "[SEG]" in lmm.processor.tokenizer.decode([added])


def push(logits, head):
    if not head.active:
        return logits
    pushed = logits.clone()
    pushed[..., head.ids[0]] = logits.amax() + 1
    return pushed
