"""Continuing from stored keys and values equals one full pass, and leaves them as they were."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_llava

from flmm_detseg.lmms.capture.decoder import PrefixDecoder

PREFIX, LENGTH = 21, 34


@pytest.fixture(scope="module", params=[4, 2], ids=["mha", "gqa"])
def model(request):
    return tiny_llava(num_kv_heads=request.param).model


def decoder(model, *stored) -> PrefixDecoder:
    return PrefixDecoder(model.model.language_model, model.get_output_embeddings(), *stored)


def sequence(model, jumping: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, LENGTH, model.config.text_config.hidden_size, generator=generator)
    positions = torch.arange(LENGTH)
    if jumping:
        positions[3 : LENGTH - 4] = 3 + torch.randperm(LENGTH - 7, generator=generator)
    return embeds, positions


@torch.no_grad()
@pytest.mark.parametrize("jumping", [False, True], ids=["packed", "raster"])
def test_chunks_equal_one_pass(model, jumping):
    embeds, positions = sequence(model, jumping)
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    full = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions[None], use_cache=False
    ).last_hidden_state
    first = decoder(model)
    head = first.feed(embeds[:, :PREFIX], positions[:PREFIX])
    stored = first.snapshot()
    tail = decoder(model, *stored).feed(embeds[:, PREFIX:], positions[PREFIX:])
    torch.testing.assert_close(torch.cat([head, tail], dim=1), full, rtol=0, atol=1e-5)
    assert stored[0][0].shape[-2] == PREFIX
    assert first.length == PREFIX


@torch.no_grad()
def test_stored_tensors_are_never_written(model):
    embeds, positions = sequence(model, True)
    first = decoder(model)
    last = first.feed(embeds[:, :PREFIX], positions[:PREFIX])
    stored = first.snapshot()
    copies = [[tensor.clone() for tensor in part] for part in stored]
    # Neither the decoder that made the states nor those that continue from them change them.
    list(first.decode(last[:, -1:], PREFIX, end_ids=[], max_new_tokens=3))
    outputs = []
    for _ in range(2):
        other = decoder(model, *stored)
        last = other.feed(embeds[:, PREFIX:], positions[PREFIX:])
        outputs.append([t.token_id for t in other.decode(last[:, -1:], LENGTH, end_ids=[], max_new_tokens=5)])
    assert outputs[0] == outputs[1]
    assert all(torch.equal(a, b) for x, y in zip(stored, copies) for a, b in zip(x, y))


@torch.no_grad()
def test_decoding_equals_generate(model):
    embeds, positions = sequence(model, False)
    ours = decoder(model)
    last = ours.feed(embeds, positions)
    tokens = [t.token_id for t in ours.decode(last[:, -1:], LENGTH, end_ids=[2], max_new_tokens=9)]
    theirs = model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(1, LENGTH), max_new_tokens=9, do_sample=False
    )
    assert tokens == theirs[0].tolist()


@torch.no_grad()
def test_end_token_ends_and_belongs_to_the_answer(model):
    embeds, positions = sequence(model, False)
    tokens = {}
    for end in (None, 2):
        ours = decoder(model)
        last = ours.feed(embeds, positions)
        ends = [] if end is None else [tokens[None][2]]
        tokens[end] = [t.token_id for t in ours.decode(last[:, -1:], LENGTH, end_ids=ends, max_new_tokens=6)]
    first = tokens[None].index(tokens[None][2])
    assert len(tokens[None]) == 6
    assert tokens[2] == tokens[None][: first + 1]
