from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from dataset_files import write_png, write_refcoco
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from flmm_detseg.datasets import (
    ConcatMix,
    EpochSampler,
    ImageMix,
    ImageSampler,
    PNGDataset,
    QuestionDataset,
    RefCOCODataset,
    WeightedMix,
    collate_samples,
)
from flmm_detseg.engine.training.loop import check_image_batches
from flmm_detseg.errors import ConfigError


@pytest.fixture
def parts(tmp_path: Path) -> list:
    (tmp_path / "refs").mkdir()
    (tmp_path / "png").mkdir()
    refcoco = RefCOCODataset(**write_refcoco(tmp_path / "refs", num_images=6), split="val", layout="split")
    return [refcoco, PNGDataset(**write_png(tmp_path / "png"))]


def ids(dataset) -> list[str]:
    return [dataset[i].record_id for i in range(len(dataset))]


def test_concat_is_one_after_the_other(parts):
    mix = ConcatMix(parts)
    assert ids(mix) == ids(parts[0]) + ids(parts[1])
    assert mix[-1].record_id == parts[1][2].record_id
    with pytest.raises(IndexError):
        mix[len(mix)]
    assert mix.phrase_texts(10) == parts[1].phrase_texts(0)
    assert [path.name for path in mix.annotation_files] == [
        "refs(unc).p", "instances.json", "png_coco_val2017.json", "panoptic_val2017.json",
    ]  # fmt: skip
    assert mix.metainfo == {"num_skipped": 0, "num_dropped": 1}


def test_mixes_build_from_configs_and_pass_the_epoch_on(tmp_path):
    arguments = write_refcoco(tmp_path)
    config = dict(type="RefCOCODataset", split="val", **arguments)
    inner = ConcatMix([config, config])
    mix = WeightedMix([inner, config], weights=[1, 1])
    mix.set_epoch(5)
    assert mix.epoch == 5
    assert inner.datasets[1].epoch == 5


def test_weights_give_the_proportions(parts):
    mix = WeightedMix(parts, weights=[1, 3], epoch_length=40)
    counts = Counter(record.split("/")[0] for record in ids(mix))
    assert counts == {"refcoco": 10, "png": 30}
    odd = WeightedMix(parts, weights=[2, 1], epoch_length=10)
    assert odd.counts == [7, 3]


def test_weighted_mix_is_deterministic_and_differs_by_epoch_and_seed(parts):
    def order(seed: int, epoch: int) -> list[str]:
        mix = WeightedMix(parts, weights=[1, 1], epoch_length=9, seed=seed)
        mix.set_epoch(epoch)
        return ids(mix)

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


def test_weighted_mix_uses_every_record_before_it_repeats_one(parts):
    mix = WeightedMix(
        parts, weights=[5, 1], epoch_length=6
    )  # 5 of 10 RefCOCO records per epoch, 1 of 3 PNG ones
    seen: Counter[str] = Counter()
    for epoch in range(6):
        mix.set_epoch(epoch)
        seen.update(ids(mix))
    assert set(seen) == set(ids(parts[0]) + ids(parts[1]))
    assert {seen[record] for record in ids(parts[0])} == {3}
    assert {seen[record] for record in ids(parts[1])} == {2}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(weights=[1]), "`weights` is"),
        (dict(weights=[1, 0]), "`weights` is"),
        (dict(weights=[1, 1], epoch_length=0), "`epoch_length` is 0"),
    ],
)
def test_wrong_mix_arguments(parts, arguments, match):
    with pytest.raises(ConfigError, match=match):
        WeightedMix(parts, **arguments)
    with pytest.raises(ConfigError, match="`datasets` is empty"):
        ConcatMix([])


def test_mmengine_loader_with_epoch_sampler_changes_the_sentences(parts):
    """As in a training config: MMEngine calls the sampler's ``set_epoch`` only."""
    loader = Runner.build_dataloader(
        dict(
            dataset=ConcatMix(parts),
            batch_size=4,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type=EpochSampler, shuffle=True),
            collate_fn=dict(type=collate_samples),
        ),
        seed=0,
    )
    assert isinstance(loader, DataLoader)

    def epoch(number: int) -> dict[str, str]:
        loader.sampler.set_epoch(number)
        samples = [sample for batch in loader for sample in batch["samples"]]
        assert len(samples) == 13
        return {sample.record_id: sample.text for sample in samples}

    first, second = epoch(0), epoch(1)
    assert first.keys() == second.keys()
    assert first != second
    assert epoch(0) == first


def _questions(tmp_path: Path, name: str, counts: list[int]) -> QuestionDataset:
    folder = tmp_path / name
    folder.mkdir()
    lines = []
    for image, count in enumerate(counts):
        Image.new("RGB", (4, 4), (image, 0, 0)).save(folder / f"{image}.png")
        lines += [
            {"question_id": f"{image}-{n}", "image": f"{image}.png", "text": f"q {n}", "answer": "yes"}
            for n in range(count)
        ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return QuestionDataset(file=str(folder / "q.jsonl"), image_dir=str(folder), name=name)


def test_an_image_mix_puts_questions_of_an_image_after_one_another(tmp_path):
    members = [_questions(tmp_path, "many", [5, 4, 6, 1]), _questions(tmp_path, "few", [2, 3])]
    mix = ImageMix(members, weights=[2, 1], per_image=3, images_per_epoch=6, seed=3)
    assert len(mix) == 18
    loader = DataLoader(mix, batch_size=6, sampler=ImageSampler(mix), collate_fn=collate_samples)
    seen = []
    for batch in loader:
        images = [sample.image_id for sample in batch["samples"]]
        assert len(set(images[:3])) == len(set(images[3:])) == 1
        seen += images[::3]
    # Every image of the larger member once, and both of the other.
    assert len(set(seen)) == 6
    first = ids(mix)
    for start in range(0, 18, 3):
        visit = first[start : start + 3]
        assert len(set(visit)) == {"many/3": 1, "few/0": 2}.get(visit[0].rpartition("-")[0], 3)
    assert first == ids(mix)
    mix.set_epoch(1)
    assert ids(mix) != first
    assert ImageMix(members, weights=[1, 1], per_image=2).epoch_length == 6
    with pytest.raises(ConfigError, match="per_image"):
        ImageMix(members, weights=[1, 1], per_image=0)
    with pytest.raises(ConfigError, match="images_per_epoch"):
        ImageMix(members, weights=[1, 1], per_image=2, images_per_epoch=0)
    with pytest.raises(ConfigError, match="weighted mix"):
        ImageMix([WeightedMix(members, weights=[1, 1])], weights=[1], per_image=2)
    with pytest.raises(ConfigError, match="EpochSampler"):
        ImageSampler(members[0])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_get_whole_visits_and_a_resumed_run_goes_on(tmp_path, monkeypatch, world_size):
    mix = ImageMix([_questions(tmp_path, "many", [5] * 7)], weights=[1], per_image=3, images_per_epoch=7)
    seen = []
    for rank in range(world_size):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, world_size))
        sampler = ImageSampler(mix)
        indices = list(sampler)
        assert len(indices) == len(sampler) == -(-7 // world_size) * 3
        visits = [indices[start : start + 3] for start in range(0, len(indices), 3)]
        assert all(visit == list(range(visit[0], visit[0] + 3)) and visit[0] % 3 == 0 for visit in visits)
        seen += indices
        sampler.set_epoch(0, start=3)
        assert list(sampler) == indices[3:]
        assert list(sampler) == indices
    assert set(seen) == set(range(21))


def test_visits_are_named_alike_for_all_records_of_an_image(tmp_path):
    mix = ImageMix([_questions(tmp_path, "many", [5] * 4)], weights=[1], per_image=2)
    names = [mix[index].meta["visit"] for index in range(len(mix))]
    assert names == ["0/0", "0/0", "0/1", "0/1", "0/2", "0/2", "0/3", "0/3"]
    mix.set_epoch(2)
    assert mix[-1].meta["visit"] == "2/3"


def test_the_training_loop_refuses_batches_that_cut_images(tmp_path):
    mix = ImageMix([_questions(tmp_path, "many", [5] * 4)], weights=[1], per_image=2)

    def loader(sampler, batch_size):
        return DataLoader(mix, batch_size=batch_size, sampler=sampler, collate_fn=collate_samples)

    check_image_batches(loader(ImageSampler(mix), 4))
    with pytest.raises(ConfigError, match="multiple of `per_image`"):
        check_image_batches(loader(ImageSampler(mix), 3))
    with pytest.raises(ConfigError, match="separates the records"):
        check_image_batches(loader(EpochSampler(mix, shuffle=False), 4))


def test_a_runner_builds_the_loader_of_an_image_mix(tmp_path):
    mix = ImageMix([_questions(tmp_path, "many", [5] * 4)], weights=[1], per_image=2)
    config = dict(
        dataset=mix,
        batch_size=4,
        num_workers=0,
        sampler=dict(type=ImageSampler),
        collate_fn=dict(type=collate_samples),
    )
    loader = Runner.build_dataloader(config, seed=5)
    check_image_batches(loader)
    assert [len({s.image_id for s in batch["samples"]}) for batch in loader] == [2, 2]
