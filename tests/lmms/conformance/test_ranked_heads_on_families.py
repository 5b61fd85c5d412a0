"""Rows of single heads are the channels of the whole stack, whichever layers the heads are in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from head_rankings import ranking_file
from test_conformance import samples
from tiny_families import FAMILIES, build

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import CaptureSpec

ROWS = CaptureSpec(attention=True)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_of_single_heads_are_channels_of_the_whole_stack(family, tmp_path):
    facts = build(family).facts
    layers = sorted(set(range(facts.num_layers)) - set(facts.rowless_layers))
    first, last = layers[0], layers[-1]
    # Best first; neither sorted nor a product, and a head that is not wanted.
    ranked = [(last, 2), (first, 3), (last, 0), (first, 1)]
    file = ranking_file(tmp_path / "heads.json", facts.num_layers, facts.num_heads, ranked)
    every = list(range(facts.num_heads))
    some, listed, whole = (
        build(family, rows=rows)
        for rows in (
            dict(heads="top:3", ranking=file),
            dict(layers=layers, heads=every),
            dict(layers=layers),
        )
    )
    assert some.attention_pairs == ((first, 3), (last, 0), (last, 2))
    if facts.rowless_layers:
        wrong = [(facts.rowless_layers[0], 0)]
        nowhere = ranking_file(tmp_path / "nowhere.json", facts.num_layers, facts.num_heads, wrong)
        with pytest.raises(
            ConfigError, match=rf"rows `ranking` names \[{facts.rowless_layers[0]}\]; these layers"
        ):
            build(family, rows=dict(heads="top:1", ranking=nowhere))
    assert some.attention_channels == 3 * facts.num_levels
    per_level = [whole.attention_pairs.index(pair) for pair in some.attention_pairs]
    channels = [
        level * len(whole.attention_pairs) + channel
        for level in range(facts.num_levels)
        for channel in per_level
    ]
    given = samples()
    stacks, expected = (
        lmm.encode([lmm.prepare(one) for one in given], ROWS, [one.image_id for one in given]).attention
        for lmm in (some, whole)
    )
    for ours, theirs in zip(stacks, expected, strict=True):
        # Heads that share keys are one product where all are read, and resizing rounds by the number of maps.
        torch.testing.assert_close(ours, theirs[:, channels], rtol=0, atol=2e-6)
        assert theirs.std(dim=1).max() > 1e-3  # heads differ
    asked = replace(given[0], text="", phrases=())
    answer, full = (lmm.generate_with_states(asked, ROWS, max_new_tokens=3) for lmm in (some, listed))
    assert torch.equal(answer.token_ids, full.token_ids)
    assert torch.equal(answer.attention, full.attention[per_level])
