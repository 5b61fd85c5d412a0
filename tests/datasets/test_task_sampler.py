"""One task per batch or mixed: ratios, processes, epochs, and going on after an interruption."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_png, write_refcoco
from mmengine.runner import Runner

from flmm_detseg.datasets import (
    EpochSampler,
    MultiTaskMix,
    PNGDataset,
    RefCOCODataset,
    TaskBatchSampler,
    TaskSampler,
    collate_samples,
)
from flmm_detseg.datasets.task_sampler import rounded
from flmm_detseg.engine.training.loop import endless
from flmm_detseg.errors import ConfigError


@pytest.fixture
def members(tmp_path: Path) -> dict:
    (tmp_path / "refs").mkdir()
    (tmp_path / "png").mkdir()
    refcoco = RefCOCODataset(**write_refcoco(tmp_path / "refs", num_images=6), split="val", layout="split")
    return {"refer": refcoco, "png": PNGDataset(**write_png(tmp_path / "png"))}  # 10 and 3 records


def mix_of(members: dict, **ratios: float) -> MultiTaskMix:
    return MultiTaskMix(members, ratios or None)


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, world_size))


def batches(
    mix: MultiTaskMix, epoch: int = 0, batch_size: int = 2, start: int = 0, **changes
) -> list[list[int]]:
    sampler = TaskSampler(mix, **{"epoch_length": 96, "seed": 7, **changes})
    batch_sampler = TaskBatchSampler(sampler, batch_size)
    sampler.set_epoch(epoch, start=start)
    found = list(batch_sampler)
    assert start or len(found) == len(batch_sampler)
    return found


def tasks(mix: MultiTaskMix, found: list[list[int]]) -> list[str]:
    names = []
    for batch in found:
        (name,) = {mix.name_of(index) for index in batch}
        names.append(name)
    return names


def test_one_task_per_batch_in_the_ratios(members):
    mix = mix_of(members, refer=1, png=3)
    found = batches(mix)
    assert {len(batch) for batch in found} == {2}
    assert Counter(tasks(mix, found)) == {"refer": 12, "png": 36}
    assert found == batches(mix)
    assert found != batches(mix, epoch=1)
    assert tasks(mix, found) != tasks(mix, batches(mix, epoch=1))
    assert found != batches(mix, seed=8)


def members_of(mix: MultiTaskMix, batch: list[int]) -> Counter:
    return Counter(map(mix.name_of, batch))


def test_every_mixed_batch_holds_every_member(members):
    mix = mix_of(members, refer=1, png=3)
    found = batches(mix, mode="mixed", epoch_length=40, batch_size=4)
    assert [members_of(mix, batch) for batch in found] == [{"refer": 1, "png": 3}] * 10
    assert found != batches(mix, mode="mixed", epoch_length=40, batch_size=4, epoch=1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_that_are_no_whole_numbers_hold_in_the_epoch(members, shuffle):
    mix = mix_of(members, refer=3, png=5)  # of 4: 1.5 and 2.5
    for epoch in range(2):
        found = batches(mix, epoch, mode="mixed", epoch_length=80, batch_size=4, shuffle=shuffle)
        kinds = Counter(members_of(mix, batch)["refer"] for batch in found)
        assert kinds == {1: 10, 2: 10}


def test_rounded_quotas() -> None:
    quotas = np.array([2.4, 2.4, 3.6, 3.6])
    found = rounded(quotas, 50)
    assert (found.sum(1) == 12).all()
    assert ((found == np.floor(quotas)) | (found == np.ceil(quotas))).all()
    assert np.abs(found.sum(0) - 50 * quotas).max() < 1
    assert (rounded(np.array([1.0, 3.0]), 7) == [1, 3]).all()


def test_lengths_are_the_default_ratios(members):
    mix = mix_of(members)
    (found,) = batches(mix, mode="mixed", epoch_length=None, batch_size=13)
    assert sorted(found) == list(range(13))


@pytest.mark.parametrize("mode", ["one_task", "mixed"])
def test_no_record_comes_twice_before_all_of_its_member_came(members, mode):
    mix = mix_of(members, refer=1, png=1)
    seen: dict[str, list[int]] = {"refer": [], "png": []}
    for epoch in range(5):  # 12 of each member an epoch
        for batch in batches(mix, epoch=epoch, mode=mode, epoch_length=24):
            for index in batch:
                seen[mix.name_of(index)].append(index)
    counts = {name: Counter(found) for name, found in seen.items()}
    assert set(counts["refer"].values()) == {6}
    assert set(counts["png"].values()) == {20}
    for name, length in (("refer", 10), ("png", 3)):
        passes = [seen[name][k : k + length] for k in range(0, 60, length)]
        assert all(len(set(one)) == length for one in passes)
        assert len({tuple(one) for one in passes}) > 1


@pytest.mark.parametrize("mode", ["one_task", "mixed"])
def test_processes_share_the_step_s_task_and_no_record(members, mode, monkeypatch):
    mix = mix_of(members, refer=3 if mode == "one_task" else 1, png=1)
    on_rank(monkeypatch, 0, 1)
    # the same global batches as one process of twice the batch size
    alone = batches(mix, batch_size=4, mode=mode, epoch_length=40)
    shards = []
    for rank in range(2):
        on_rank(monkeypatch, rank, 2)
        shards.append(batches(mix, batch_size=2, mode=mode, epoch_length=40))
    assert len(shards[0]) == len(shards[1]) == len(alone) == 10
    for one, two, together in zip(*shards, alone):
        assert sorted(one + two) == sorted(together)
    if mode == "one_task":
        assert tasks(mix, shards[0]) == tasks(mix, shards[1])
        # 10 records: no pass ends within the first two of its steps
        steps = [set(one) | set(two) for one, two in zip(*shards) if mix.name_of(one[0]) == "refer"]
        assert len(steps[0] | steps[1]) == 8
    else:
        assert all(members_of(mix, batch) == {"refer": 1, "png": 1} for shard in shards for batch in shard)
    refer = Counter(i for shard in shards for batch in shard for i in batch if mix.name_of(i) == "refer")
    assert max(refer.values()) - min(refer.values()) <= 1


def test_epoch_is_rounded_up_to_whole_steps(members, monkeypatch):
    mix = mix_of(members, refer=1, png=1)
    for rank in range(3):
        on_rank(monkeypatch, rank, 3)
        found = batches(mix, batch_size=4, epoch_length=25)
        assert [len(batch) for batch in found] == [4, 4, 4]


def test_processes_hold_equally_many_of_each_member_in_a_step(members, monkeypatch):
    mix = mix_of(members, refer=3, png=5)
    shards = []
    for rank in range(2):
        on_rank(monkeypatch, rank, 2)
        shards.append(batches(mix, batch_size=4, mode="mixed", epoch_length=80))
    kinds = [[members_of(mix, batch) for batch in shard] for shard in shards]
    assert kinds[0] == kinds[1]
    assert len({kind["refer"] for kind in kinds[0]}) == 2
    assert shards[0] != shards[1]


@pytest.mark.parametrize("mode", ["one_task", "mixed"])
def test_a_resumed_epoch_goes_on(members, mode):
    mix = mix_of(members, refer=1, png=2)
    for epoch in (0, 4):
        straight = batches(mix, epoch, mode=mode, batch_size=4)
        assert batches(mix, epoch, start=44, mode=mode, batch_size=4) == straight[11:]


def test_without_shuffling_members_alternate(members):
    mix = mix_of(members, refer=1, png=1)
    found = batches(mix, shuffle=False, epoch_length=12)
    assert tasks(mix, found) == ["refer", "png"] * 3
    assert [index for batch in found[::2] for index in batch] == [0, 1, 2, 3, 4, 5]
    following = batches(mix, epoch=1, shuffle=False, epoch_length=12)
    assert following[0] == [6, 7]


def build_loader(members: dict, mode: str, workers: int = 0):
    config = dict(
        dataset=dict(type=MultiTaskMix, datasets=members, ratios=dict(refer=2, png=1)),
        batch_size=3,
        num_workers=workers,
        sampler=dict(type=TaskSampler, mode=mode),
        collate_fn=dict(type=collate_samples),
        batch_sampler=dict(type=TaskBatchSampler),
    )
    return Runner.build_dataloader(config, seed=5)


@pytest.mark.parametrize("mode", ["one_task", "mixed"])
def test_mmengine_s_loader_and_the_training_loop_s_resume(members, mode):
    """The loop's own iterator: across epochs, and from any batch on; sentences follow the epoch."""
    loader = build_loader(members, mode)
    assert isinstance(loader.batch_sampler.sampler, EpochSampler)

    def texts(loader, start: int, count: int) -> list[list[str]]:
        return [[s.text for s in batch["samples"]] for batch in islice(endless(loader, start), count)]

    straight = texts(loader, 0, 14)  # 5 batches an epoch
    assert len(loader) == 5
    for start in (3, 5, 9):
        assert texts(build_loader(members, mode), start, 14 - start) == straight[start:]
    if mode == "one_task":
        prefixes = [{text.split()[0] for text in batch} for batch in straight]
        assert all(len(prefix) == 1 for prefix in prefixes)


def test_worker_processes_give_the_same(members):
    def ids(workers: int) -> list[list[str]]:
        loader = build_loader(members, "one_task", workers)
        return [[s.record_id for s in batch["samples"]] for batch in islice(endless(loader, 0), 7)]

    assert ids(2) == ids(0)


@pytest.mark.parametrize(
    ("ratios", "match"),
    [
        (dict(refer=1), "needs a positive number for 'png'"),
        (dict(refer=1, png=0), "needs a positive number for 'png'"),
        (dict(refer=1, pgn=1, png=1), "names 'pgn'.*did you mean `png`"),
    ],
)
def test_wrong_ratios(members, ratios, match):
    with pytest.raises(ConfigError, match=match):
        MultiTaskMix(members, ratios)


def test_wrong_samplers(members):
    mix = mix_of(members, refer=1, png=1)
    with pytest.raises(ConfigError, match="`mode` of TaskSampler is 'both'"):
        TaskSampler(mix, mode="both", seed=0)
    with pytest.raises(ConfigError, match="`epoch_length` of TaskSampler is 0"):
        TaskSampler(mix, epoch_length=0, seed=0)
    with pytest.raises(ConfigError, match="needs a MultiTaskMix, got a RefCOCODataset"):
        TaskSampler(members["refer"], seed=0)
    for mode in ("one_task", "mixed"):
        with pytest.raises(ConfigError, match="add `batch_sampler=dict"):
            list(TaskSampler(mix, mode=mode, seed=0))
    rare = TaskSampler(mix_of(members, refer=1, png=5), mode="mixed", seed=0)
    with pytest.raises(ConfigError, match="'refer' gives it 0.67 of the 4 samples.*`batch_size` 6 or more"):
        TaskBatchSampler(rare, 4)
    TaskBatchSampler(rare, 6)
    with pytest.raises(ConfigError, match="needs a TaskSampler, got a EpochSampler"):
        TaskBatchSampler(EpochSampler(mix, seed=0), 2)
    with pytest.raises(ConfigError, match="none of the 4 places"):
        TaskBatchSampler(TaskSampler(mix_of(members, refer=50, png=1), epoch_length=8, seed=0), 2)


def test_mix_names_and_report(members):
    mix = MultiTaskMix(dict(members))
    assert mix.name_of(9) == "refer"
    assert mix.name_of(10) == "png"
    assert mix.starts == (0, 10)
    assert mix.ratios == {"refer": 10.0, "png": 3.0}
    assert set(mix.report()["members"]) == {"refer", "png"}
    assert np.array_equal(mix[10].image, members["png"][0].image)
