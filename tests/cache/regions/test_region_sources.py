"""Sources of objects: given, random, by difference, by a detector, by a user's function; and the policies over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_sample
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

from flmm_detseg.cache.regions.hf_detector import HFDetector
from flmm_detseg.cache.regions.sources import (
    FrameDifference,
    GivenRegions,
    NoRegions,
    Partitioner,
    PluginRegions,
    RandomRegions,
    Regions,
    RegionSource,
)
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import DenseTargets, GridLevel, PatchGrid, Sample

GRID = PatchGrid((80, 80), (56, 56), 0, 0, (56, 56), (GridLevel(4, 4),))
# One box per row of patches, so that whole rows can be distinguished.
ROWS = np.array([[0, 20 * row, 80, 20 * row + 20] for row in range(3)], dtype=np.float32)


def image(value: int = 0) -> np.ndarray:
    return np.full((80, 80, 3), value, np.uint8)


def sample(picture: np.ndarray | None = None, **fields) -> Sample:
    return Sample("one", image() if picture is None else picture, "", (), **fields)


def scored(picture: np.ndarray, scores: tuple[float, ...] = (0.9, 0.5, 0.9)) -> Regions:
    assert picture.shape == (80, 80, 3)
    labels = ("text", "person", "text")
    return Regions(boxes_xyxy=ROWS, scores=np.array(scores), labels=labels)


def object_rows(partition) -> list[int]:
    rows = partition.group.reshape(4, 4)
    assert (rows == rows[:, :1]).all()
    return np.flatnonzero(rows[:, 0] == 1).tolist()


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (dict(), [0, 1, 2]),
        (dict(min_score=0.6), [0, 2]),
        (dict(labels=["person"]), [1]),
        (dict(labels=["nobody"]), []),
        (dict(policy="top1"), [0]),
        (dict(policy="top1", labels=["person"]), [1]),
        (dict(policy="top1", min_score=0.95), []),
        (dict(min_score=0.6, dilate=1), [0, 1, 2, 3]),
    ],
)
def test_policies_choose_boxes(arguments, rows):
    partitioner = Partitioner(PluginRegions(scored), **{"dilate": 0, **arguments})
    partition = partitioner(sample(), GRID)
    assert object_rows(partition) == rows
    assert partition.source == "plugin"


def test_the_best_of_equal_scores_is_the_larger_box():
    boxes = np.array([[0, 0, 80, 20], [0, 20, 80, 60]], dtype=np.float32)
    partitioner = Partitioner(PluginRegions(lambda _: Regions(boxes_xyxy=boxes)), policy="top1", dilate=0)
    assert object_rows(partitioner(sample(), GRID)) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("boxes", dict(dense=DenseTargets(boxes_xyxy=ROWS[1:2]))),
        ("meta", dict(meta={"objects_xyxy": [[0, 20, 80, 40]]})),
        ("masks", dict(masks=np.arange(80)[None, :, None].repeat(80, 2) // 20 == 1)),
        (
            "dense_masks",
            dict(dense=DenseTargets(masks=np.arange(80)[None, :, None].repeat(80, 2) // 20 == 1)),
        ),
    ],
)
def test_given_objects(kind, fields):
    partitioner = Partitioner(GivenRegions(kind), dilate=0)
    assert object_rows(partitioner(sample(**fields), GRID)) == [1]
    with pytest.raises(DataError, match=f"given {kind}"):
        partitioner(sample(), GRID)


def test_samples_without_given_objects_may_have_another_source():
    otherwise = dict(type=PluginRegions, function=lambda _: Regions(boxes_xyxy=ROWS[2:3]))
    partitioner = Partitioner(dict(type=GivenRegions, kind="meta", otherwise=otherwise), dilate=0)
    assert object_rows(partitioner(sample(meta={"objects_xyxy": [[0, 20, 80, 40]]}), GRID)) == [1]
    assert object_rows(partitioner(sample(meta={"objects_xyxy": []}), GRID)) == []
    assert object_rows(partitioner(sample(), GRID)) == [2]


def test_no_objects():
    assert object_rows(Partitioner(NoRegions())(sample(), GRID)) == []


def test_differences_add_up_within_a_scene_and_streams_are_apart():
    partitioner = Partitioner(FrameDifference(threshold=2), dilate=0)
    frames = [image(), image(), image(), image()]
    frames[1][0, :] = 9
    frames[1][70, 3] = 2
    frames[2][25, :] = 9
    found = [object_rows(partitioner(sample(frame, meta={"session": "a"}), GRID)) for frame in frames[:3]]
    assert found == [[], [0], [0, 1]]
    assert object_rows(partitioner(sample(frames[2], meta={"session": "b"}), GRID)) == []
    # Another scene: nothing of the old one is left.
    assert object_rows(partitioner(sample(image(200), meta={"session": "a"}), GRID)) == []
    assert object_rows(partitioner(sample(image(200), meta={"session": "a"}), GRID)) == []


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [(None, [[], [0], [0, 1], [0, 1], [0, 1]]), (0, [[], [0], [1], [], []]), (1, [[], [0], [0, 1], [1], []])],
)
def test_what_stands_still_is_background_again(memory, wanted):
    partitioner = Partitioner(FrameDifference(threshold=2, memory=memory), dilate=0)
    frames = [image() for _ in range(5)]
    for frame in frames[1:]:
        frame[0, :] = 9
    for frame in frames[2:]:
        frame[25, :] = 9
    found = [object_rows(partitioner(sample(frame, meta={"session": "a"}), GRID)) for frame in frames]
    assert found == wanted


def test_streams_are_forgotten_and_sizes_may_change():
    source = FrameDifference(max_streams=1)
    changed = image()
    changed[0, 0] = 1
    source.find(sample(meta={"session": "a"}))
    source.find(sample(meta={"session": "b"}))
    assert not source.find(sample(changed, meta={"session": "a"})).mask.any()
    smaller = changed[:40]
    assert source.find(sample(smaller, meta={"session": "a"})).mask.shape == (40, 80)


def test_a_tenant_with_many_streams_pushes_out_its_own():
    source = FrameDifference(max_streams=3)
    changed = image()
    changed[0, 0] = 1
    source.find(sample(meta={"session": ("quiet", "a")}))
    for name in range(20):
        source.find(sample(meta={"session": ("busy", str(name))}))
    assert source.find(sample(changed, meta={"session": ("busy", "19")})).mask.any()
    assert not source.find(sample(changed, meta={"session": ("busy", "1")})).mask.any()
    assert source.find(sample(changed, meta={"session": ("quiet", "a")})).mask.any()


def test_boxes_by_lot_repeat_and_differ():
    source = RandomRegions(num_boxes=3, max_side=0.5)
    samples = [make_sample(index) for index in range(40)]
    drawn = [source.find(item).boxes_xyxy for item in samples]
    again = [RandomRegions(num_boxes=3, max_side=0.5).find(item).boxes_xyxy for item in samples]
    other = [RandomRegions(num_boxes=3, max_side=0.5, seed=1).find(item).boxes_xyxy for item in samples]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(drawn, other, strict=True))
    assert {len(boxes) for boxes in drawn} == {0, 1, 2, 3}
    boxes = np.concatenate(drawn)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (72, 48)).all()
    assert (boxes[:, 2] - boxes[:, 0] <= 36.001).all()


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtdetr")
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8] * 3,
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        d_model=16,
        decoder_in_channels=[16] * 3,
        decoder_ffn_dim=16,
        num_queries=20,
        decoder_layers=1,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_n_points=2,
        id2label={0: "text", 1: "person", 2: "car"},
        label2id={"text": 0, "person": 1, "car": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size=dict(height=64, width=64)).save_pretrained(folder)
    return str(folder)


def test_detector_of_transformers_answers_in_original_pixels(detector_folder):
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    detector = HFDetector(detector_folder, threshold=0.0)
    small = detector.find(sample(picture))
    # The same pixels twice as large: the detector's own resize gives nearly the same input, boxes are twice as large.
    large = detector.find(sample(picture.repeat(2, 0).repeat(2, 1)))
    assert small.boxes_xyxy.shape == (20, 4)
    assert len(small.labels) == len(small.scores) == 20
    assert set(small.labels) <= {"text", "person", "car"}
    centre = [found.boxes_xyxy.mean(0) for found in (small, large)]
    np.testing.assert_allclose(2 * centre[0], centre[1], rtol=0.1)
    strict = HFDetector(detector_folder, threshold=float(np.sort(small.scores)[-5]) - 1e-6)
    assert len(strict.find(sample(picture)).boxes_xyxy) == 5


def test_detector_folder_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="object detector"):
        HFDetector(str(tmp_path))


def test_plugin_is_imported_by_name_and_checked():
    arguments = dict(scores=(1, 0, 0))
    config = dict(type="PluginRegions", function="test_region_sources:scored", arguments=arguments)
    source = MODELS.build(config)
    assert isinstance(source, RegionSource)
    assert source.find(sample()).scores.tolist() == [1, 0, 0]
    for path in ("test_region_sources:nothing", "no_such_module:x", "scored", "test_region_sources:ROWS"):
        with pytest.raises(ConfigError, match="function"):
            PluginRegions(path)
    with pytest.raises(DataError, match="wanted Regions"):
        PluginRegions(lambda _: [1, 2]).find(sample())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Partitioner(NoRegions(), policy="best"), "all, top1"),
        (lambda: Partitioner(NoRegions(), labels=["text"]), "gives no labels"),
        (lambda: GivenRegions("everything"), "boxes, masks"),
        (lambda: FrameDifference(threshold=-1), "threshold"),
        (lambda: FrameDifference(threshold=256), "threshold"),
        (lambda: FrameDifference(memory=-1), "memory"),
        (lambda: FrameDifference(memory=255), "memory"),
        (lambda: RandomRegions(max_side=2), "max_side"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


MASK_SOURCES = [
    FrameDifference,
    NoRegions,
    lambda: GivenRegions("masks"),
    lambda: GivenRegions("dense_masks"),
    lambda: GivenRegions("meta", otherwise=FrameDifference()),
]


@pytest.mark.parametrize("make", MASK_SOURCES)
@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(dict(policy="top1"), "boxes"), (dict(labels=["text"]), "labels"), (dict(min_score=0.3), "scores")],
)
def test_a_policy_that_would_do_nothing_is_refused(make, arguments, missing):
    with pytest.raises(ConfigError, match=rf"`{next(iter(arguments))}`.*gives no {missing}"):
        Partitioner(make(), **arguments)


def test_boxes_without_scores_or_labels_allow_the_best_one_only():
    for source in (RandomRegions(), GivenRegions("boxes"), GivenRegions("meta", otherwise=RandomRegions())):
        Partitioner(source, policy="top1")
        with pytest.raises(ConfigError, match="scores"):
            Partitioner(source, min_score=0.5)
        with pytest.raises(ConfigError, match="labels"):
            Partitioner(source, labels=["text"])


@pytest.mark.parametrize(
    ("regions", "arguments", "missing"),
    [
        (Regions(mask=np.ones((80, 80), bool)), dict(policy="top1"), "boxes"),
        (Regions(boxes_xyxy=ROWS), dict(min_score=0.5), "scores"),
        (Regions(boxes_xyxy=ROWS), dict(labels=["text"]), "labels"),
    ],
)
def test_a_plugin_that_gives_less_than_its_policy_needs_is_named(regions, arguments, missing):
    partitioner = Partitioner(PluginRegions(lambda _: regions), **arguments)
    with pytest.raises(ConfigError, match=f"'plugin' gives no {missing}"):
        partitioner(sample(), GRID)
