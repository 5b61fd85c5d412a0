"""Order, positions and columns of a prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flmm_detseg.cache.reading.layout import PromptLayout, only_sent
from flmm_detseg.cache.regions.partition import box_tiles, partition_tiles
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import GridLevel, PatchGrid

SYSTEM, TEXT = 3, 7
WIDE = PatchGrid((50, 100), (56, 112), 28, 0, (112, 112), (GridLevel(14, 14),))
PARTITION = partition_tiles(WIDE, box_tiles(WIDE, np.array([[10.0, 10.0, 40.0, 30.0]])), dilate=1)


def layout(**arguments) -> PromptLayout:
    return PromptLayout(196, **arguments)


@pytest.mark.parametrize("letterbox", ["background", "drop"])
@pytest.mark.parametrize("positions", ["packed", "raster"])
def test_every_patch_sent_has_one_column(positions, letterbox):
    ours = layout(positions=positions, letterbox=letterbox)
    background, objects = ours.background(PARTITION), ours.objects(PARTITION)
    plan = ours.plan(SYSTEM, background, objects, TEXT)
    sent = torch.cat([background, objects])
    dropped = 0 if letterbox == "background" else len(PARTITION.letterbox)
    assert len(sent) == len(sent.unique()) == 196 - dropped
    assert plan.length == SYSTEM + 4 + len(sent) + TEXT
    assert plan.prefix_length == SYSTEM + 2 + len(background)
    assert plan.prompt_length == plan.length - TEXT
    assert plan.columns[sent].unique().numel() == len(sent)
    assert (plan.columns[background] < plan.prefix_length - 1).all()
    assert (plan.columns[background] > SYSTEM).all()
    assert (plan.columns[objects] > plan.prefix_length).all()
    assert (plan.columns[objects] < plan.prompt_length - 1).all()
    assert int((plan.columns == -1).sum()) == dropped


def test_raster_positions_are_those_of_the_specification():
    ours = layout(positions="raster")
    background, objects = ours.background(PARTITION), ours.objects(PARTITION)
    plan = ours.plan(SYSTEM, background, objects, TEXT)
    at = plan.position_ids
    assert at[:SYSTEM].tolist() == [0, 1, 2]
    assert torch.equal(at[plan.columns], SYSTEM + 2 + torch.arange(196))
    start, end = SYSTEM, plan.prefix_length - 1
    assert (at[start], at[end]) == (SYSTEM, SYSTEM + 1)
    assert (at[end + 1], at[plan.prompt_length - 1]) == (SYSTEM + 198, SYSTEM + 199)
    # Text stands where it stands in the packed scheme: the LMM's own geometry.
    packed = layout(positions="packed").plan(SYSTEM, background, objects, TEXT).position_ids
    assert torch.equal(at[-TEXT:], packed[-TEXT:])
    assert len(at.unique()) == len(at)


def test_prefix_positions_depend_on_the_background_alone():
    for positions in ("packed", "raster"):
        ours = layout(positions=positions)
        background = ours.background(PARTITION)
        a = ours.plan(SYSTEM, background, ours.objects(PARTITION), TEXT)
        b = ours.plan(SYSTEM, background, ours.objects(PARTITION)[:3], 2 * TEXT)
        assert torch.equal(a.position_ids[: a.prefix_length], b.position_ids[: b.prefix_length])


def test_a_changed_patch_is_read_where_it_was_recomputed():
    ours = layout()
    background = ours.background(PARTITION)
    changed = background[5:6]
    objects = torch.cat([ours.objects(PARTITION), changed]).sort().values
    plan = ours.plan(SYSTEM, background, objects, TEXT)
    assert plan.columns[changed] > plan.prefix_length
    assert plan.position_ids[plan.columns[changed]] == SYSTEM + 2 + changed


def test_values_return_to_the_raster():
    ours = layout(letterbox="drop")
    plan = ours.plan(SYSTEM, ours.background(PARTITION), ours.objects(PARTITION), TEXT)
    rows = torch.zeros(2, plan.length)
    sent = plan.columns >= 0
    rows[:, plan.columns[sent]] = torch.arange(196.0)[sent]
    rows[:, 0] = 7
    maps = only_sent(rows[:, plan.columns.clamp(min=0)], plan)
    assert torch.equal(maps[1], torch.where(sent, torch.arange(196.0), 0.0))


@pytest.mark.parametrize("empty", ["background", "objects"])
def test_groups_may_be_empty(empty):
    everything, nothing = torch.arange(196), torch.zeros(0, dtype=torch.int64)
    groups = (nothing, everything) if empty == "background" else (everything, nothing)
    plan = layout().plan(SYSTEM, *groups, TEXT)
    assert plan.length == SYSTEM + 4 + 196 + TEXT
    assert (plan.columns >= 0).all()


def test_groups_are_never_cut():
    ours = layout(max_length=SYSTEM + 4 + 196 + TEXT)
    groups = ours.background(PARTITION), ours.objects(PARTITION)
    ours.plan(SYSTEM, *groups, TEXT)
    with pytest.raises(DataError, match="never cut"):
        ours.plan(SYSTEM, *groups, TEXT + 1)


def test_prefix_key_changes_with_all_it_names():
    ids, separators = torch.tensor([1, 5, 6]), torch.zeros(4, 8)
    keys = [
        layout().prefix_key(ids, separators),
        layout(positions="packed").prefix_key(ids, separators),
        layout(letterbox="drop").prefix_key(ids, separators),
        PromptLayout(576).prefix_key(ids, separators),
        layout().prefix_key(ids[:2], separators),
        layout().prefix_key(ids, separators.bfloat16()),
        layout().prefix_key(ids, separators + 1),
    ]
    assert len(set(keys)) == len(keys)
    assert layout(max_length=9999).prefix_key(ids.clone(), separators.clone()) == keys[0]


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="packed, raster"):
        layout(positions="rope")
    with pytest.raises(ConfigError, match="background, drop"):
        layout(letterbox="own")
