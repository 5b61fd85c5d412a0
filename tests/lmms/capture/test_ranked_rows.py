"""Attention rows of the heads that a ranking chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cached_parts import boxed_sample, cached_llava
from head_rankings import ranking_file
from tiny import make_sample, tiny_llava

from flmm_detseg.errors import ConfigError
from flmm_detseg.inference import AttentionReader
from flmm_detseg.lmms.capture import row_tap
from flmm_detseg.structures import CaptureSpec

ROWS = CaptureSpec(attention=True)
# Of 3 layers of 4 heads, best first.
RANKED = [(2, 3), (0, 1), (2, 0), (1, 1)]
CHANNELS = [1, 8, 11]  # of the best three in the whole stack: (0, 1), (2, 0), (2, 3)


@pytest.fixture
def ranking(tmp_path: Path) -> str:
    return ranking_file(tmp_path / "heads.json", 3, 4, RANKED)


@torch.no_grad()
def stack(lmm) -> torch.Tensor:
    return lmm.encode([lmm.prepare(make_sample(0))], ROWS).attention[0]


def test_only_the_wanted_rows_are_computed(ranking, monkeypatch):
    computed = []
    attention_rows = row_tap.attention_rows

    def counted(*arguments, heads, **settings):
        computed.append(heads.tolist())
        return attention_rows(*arguments, heads=heads, **settings)

    monkeypatch.setattr(row_tap, "attention_rows", counted)
    stack(tiny_llava(rows=dict(heads="top:3", ranking=ranking)))
    assert computed == [[1], [0, 3]]  # of layers 0 and 2; nothing of layer 1


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize("attention", ["rows", "eager"])
def test_the_channels_are_those_of_the_whole_stack(attention, merge, ranking):
    settings = dict(attention=attention, merge=merge)
    whole = tiny_llava(rows=settings)
    some = tiny_llava(rows=dict(settings, heads="top:3", ranking=ranking))
    assert some.attention_pairs == ((0, 1), (2, 0), (2, 3))
    assert torch.equal(stack(some), stack(whole)[:, CHANNELS])


def test_gradients_flow_through_the_wanted_heads(ranking):
    lmm = tiny_llava(rows=dict(heads="top:1", ranking=ranking), frozen=False)
    lmm.encode([lmm.prepare(make_sample(0))], ROWS).attention[0].square().sum().backward()
    query = lmm.decoder_module.layers[2].self_attn.q_proj.weight.grad
    by_head = query.view(4, -1).abs().sum(1)
    assert by_head[3] > 0
    assert not by_head[:3].any()


@torch.no_grad()
def test_an_lmm_that_reads_images_in_groups_reads_the_same_heads(ranking):
    whole, some = (
        cached_llava(rows=dict(heads=[0, 1, 2, 3])),
        cached_llava(rows=dict(heads="top:3", ranking=ranking)),
    )
    assert some.attention_channels == 3
    sample = boxed_sample()
    ours, theirs = (lmm.encode([lmm.prepare(sample)], ROWS).attention[0] for lmm in (some, whole))
    assert torch.equal(ours, theirs[:, CHANNELS])
    asked = boxed_sample(num_phrases=0)
    answers = [lmm.generate_with_states(asked, ROWS, max_new_tokens=3) for lmm in (some, whole)]
    assert torch.equal(answers[0].attention, answers[1].attention[CHANNELS])


def test_a_reader_with_labels_for_layers_and_heads_refuses_single_ones(ranking):
    with pytest.raises(
        ConfigError, match=r"reads 3 single heads \(rows `heads`='top:N'\); leave `heads` out"
    ):
        AttentionReader(tiny_llava(rows=dict(heads="top:3", ranking=ranking)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (dict(heads="top:0"), "'top:0': the best 0 heads were asked for; the ranking of tiny has 4"),
        (dict(heads="top:99"), "'top:99': the best 99 heads were asked for; the ranking of tiny has 4"),
        (dict(heads="top:-1"), "'top:-1'; allowed: a list of indices, None, or 'top:N' such as 'top:16'"),
        (dict(heads="best:2"), "'best:2'; allowed"),
        (dict(heads="top:2", layers=[1]), r"takes heads of any layer, and `layers` is \(1,\)"),
        (dict(heads=[0, 1]), "which only `heads`='top:N' reads; leave it out"),
        (dict(layers=1, ranking=None), "`layers` is 1; a list of indices"),
        (dict(layers="1", ranking=None), "`layers` is '1'; a list of indices"),
        (dict(heads=[0.5], ranking=None), r"`heads` is \[0\.5\]; a list of indices"),
        (dict(heads="top:2", ranking=None), "needs `ranking`: the file that flmm-detseg rank-heads writes"),
        (dict(heads="top:2", ranking="no/such.json"), r"no/such\.json is no file \(looked from "),
    ],
)
def test_settings_that_cannot_be_used(rows, message, ranking):
    with pytest.raises(ConfigError, match=message):
        tiny_llava(rows=dict(dict(ranking=ranking), **rows))


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "heads.json"
    wanted = dict(heads="top:1", ranking=str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"heads\.json cannot be read as JSON"):
        tiny_llava(rows=wanted)
    path.write_text(json.dumps({"heads": [[0, 0]]}))
    with pytest.raises(ConfigError, match=r"heads\.json is no ranking of heads"):
        tiny_llava(rows=wanted)
    ranking_file(path, 4, 8, [(3, 7)])
    with pytest.raises(ConfigError, match="4 layers of 8 heads, this model has 3 of 4; rank its own"):
        tiny_llava(rows=wanted)
