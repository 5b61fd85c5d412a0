from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import SIZE, narrative, segment, write_png
from PIL import Image

from flmm_detseg.datasets import PNGDataset
from flmm_detseg.errors import DataError

COCO_SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "coco_panoptic_sample"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return write_png(tmp_path)


def edit(path: str, change) -> None:
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


def test_phrases_masks_and_categories(files):
    dataset = PNGDataset(**files)
    sample = dataset[0]
    assert sample.text == "In front of the sky there is a star ; two stars ."
    assert [sample.phrase_text(k) for k in range(3)] == ["the sky", "a star", "two stars"]
    assert [phrase.is_thing for phrase in sample.phrases] == [False, True, True]
    assert [phrase.is_plural for phrase in sample.phrases] == [False, False, True]
    sky, star, stars = sample.masks
    assert star.sum() == 100
    assert np.array_equal(star, np.pad(np.ones((10, 10), bool), ((10, 20), (5, 45))))
    assert stars[12:30, 30:45].all()
    assert stars.sum() == 100 + 18 * 15
    assert not (sky & stars).any()


def test_narrative_without_grounded_phrase_is_dropped_and_counted(files):
    dataset = PNGDataset(**files)
    assert len(dataset) == 3
    assert dataset.dropped == {"no grounded phrase": ["png/narrative-3-image-7"]}
    assert dataset.problems == []
    assert dataset.report() == {"records": 3, "skipped": {}, "dropped": {"no grounded phrase": 1}}


def test_plural_stuff_counts_as_the_protocol_says(files):
    def plural_sky(narratives):
        narratives[0]["segments"][1]["plural"] = True

    edit(files["narratives_file"], plural_sky)
    assert PNGDataset(**files)[0].phrases[0].is_thing is True
    assert PNGDataset(**files, plural_is_thing=False)[0].phrases[0].is_thing is False


def unknown_segment(narratives):
    narratives[1]["segments"][3]["segment_ids"] = ["99"]


def unknown_image(narratives):
    narratives[1]["image_id"] = "12345"


def not_a_number(narratives):
    narratives[1]["segments"][3]["segment_ids"] = ["abc"]


def empty_phrase(narratives):
    narratives[1]["segments"][3]["utterance"] = " "


@pytest.mark.parametrize(
    ("change", "match", "kind"),
    [
        (unknown_segment, "narrative 1 .*phrase 'a star': segment 99 is not in", "unknown segment"),
        (unknown_image, "narrative 1 .*image 12345 is not in panoptic_val2017.json", "unknown image"),
        (not_a_number, "narrative 1 .*malformed .*'abc'", "malformed"),
        (empty_phrase, "narrative 1 .*segment 3 has segment ids but an empty utterance", "empty phrase"),
    ],
)
def test_bad_narratives_raise_or_are_skipped_and_listed(files, change, match, kind):
    edit(files["narratives_file"], change)
    with pytest.raises(DataError, match=match):
        PNGDataset(**files)
    dataset = PNGDataset(**files, policy="skip")
    assert [problem.kind for problem in dataset.problems] == [kind]
    assert [dataset[i].record_id for i in range(2)] == ["png/narrative-0-image-7", "png/narrative-2-image-9"]


def no_segments_key(panoptic):
    del panoptic["annotations"][1]["segments_info"]


def segment_without_category(panoptic):
    del panoptic["annotations"][1]["segments_info"][2]["category_id"]


def foreign_category(panoptic):
    panoptic["annotations"][1]["segments_info"][0]["category_id"] = 77


def segments_are_no_list(panoptic):
    panoptic["annotations"][1]["segments_info"] = 5


def image_without_size(panoptic):
    del panoptic["images"][1]["height"]


def image_is_no_object(panoptic):
    panoptic["images"][1] = "8"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_segments_key, r"annotations\[1\]: key `segments_info` is missing"),
        (segment_without_category, r"annotations\[1\] segments_info\[2\]: key `category_id` is missing"),
        (foreign_category, r"annotations\[1\]: malformed \(category 77 is not in `categories`\)"),
        (segments_are_no_list, r"annotations\[1\]: malformed"),
        (image_without_size, r"images\[1\]: key `height` is missing"),
        (image_is_no_object, r"images\[1\]: expected an object with id, file_name, .*, got str"),
    ],
)
def test_faulty_panoptic_entries_raise_or_cost_the_narratives_of_their_image(files, change, match):
    edit(files["panoptic_json"], change)
    with pytest.raises(DataError, match=f"panoptic_val2017.json: {match}"):
        PNGDataset(**files)
    dataset = PNGDataset(**files, policy="skip")
    assert [dataset[i].record_id for i in range(2)] == ["png/narrative-0-image-7", "png/narrative-2-image-9"]
    assert "panoptic_val2017.json" in dataset.problems[0].file
    assert dataset.problems[0].kind == "malformed"
    assert dataset.problems[-1].kind == "unknown image"


def test_category_without_kind_costs_what_uses_it(files):
    def forget(panoptic):
        del panoptic["categories"][0]["isthing"]

    edit(files["panoptic_json"], forget)
    with pytest.raises(DataError, match=r"panoptic_val2017.json: categories\[0\]: key `isthing` is missing"):
        PNGDataset(**files)
    with pytest.raises(DataError, match="no usable record"):
        PNGDataset(**files, policy="skip")


def no_image_id(narratives):
    del narratives[1]["image_id"]


def no_utterance(narratives):
    del narratives[1]["segments"][3]["utterance"]


def no_object(narratives):
    narratives[1] = 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_image_id, "narrative 1: key `image_id` is missing"),
        (no_utterance, r"narrative 1 \(png/narrative-1-image-8\).*segment 3: key `utterance` is missing"),
        (no_object, "narrative 1: expected an object with image_id, segments, got int"),
    ],
)
def test_narratives_without_their_keys_follow_the_policy(files, change, match):
    edit(files["narratives_file"], change)
    with pytest.raises(DataError, match=f"png_coco_val2017.json: {match}"):
        PNGDataset(**files)
    dataset = PNGDataset(**files, policy="skip")
    assert dataset.report()["skipped"] == {"malformed": 1}
    assert len(dataset) == 2


def test_lists_of_another_kind(files):
    edit(files["panoptic_json"], lambda panoptic: panoptic.update(images={"7": 1}))
    with pytest.raises(DataError, match="panoptic_val2017.json: expected a list of images, got dict"):
        PNGDataset(**files, policy="skip")
    Path(files["narratives_file"]).write_text("{}")
    with pytest.raises(DataError, match="png_coco_val2017.json: expected a list of narratives, got dict"):
        PNGDataset(**files, policy="skip")


def test_segment_without_pixels_and_broken_map(files):
    blank = Path(files["panoptic_dir"]) / "000000000000.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(blank)
    broken = Path(files["panoptic_dir"]) / "000000000001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    small = Path(files["panoptic_dir"]) / "000000000002.png"
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(small)
    dataset = PNGDataset(**files, policy="skip")
    with pytest.raises(DataError, match="png/narrative-0-image-7: phrase 'the sky' has no pixel in the map"):
        dataset[0]
    with pytest.raises(DataError, match="000000000001.png: .*panoptic map cannot be decoded"):
        dataset[1]
    with pytest.raises(DataError, match="panoptic map is 4 x 5, its image 40 x 60"):
        dataset[2]
    with pytest.raises(DataError, match=r"no usable record \(3 skipped, 1 dropped\)"):
        PNGDataset(**files, policy="skip", verify_images=True)


def test_truncated_annotation(files):
    path = Path(files["panoptic_json"])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match="panoptic_val2017.json: panoptic annotation is not complete JSON"):
        PNGDataset(**files)


@pytest.mark.skipif(not COCO_SAMPLE.is_dir(), reason=f"{COCO_SAMPLE} is missing")
def test_real_coco_images(tmp_path):
    """Two photographs in COCO's own panoptic files, with a narrative made from their segments."""
    panoptic = json.loads((COCO_SAMPLE / "panoptic_examples.json").read_text())
    categories = {category["id"]: category for category in panoptic["categories"]}
    narratives = []
    for annotation in panoptic["annotations"]:
        by_name: dict[str, list[int]] = {}
        for info in annotation["segments_info"]:
            by_name.setdefault(categories[info["category_id"]]["name"], []).append(info["id"])
        segments = [segment(f"the {name}", ids, plural=len(ids) > 1) for name, ids in by_name.items()]
        narratives.append(narrative(str(annotation["image_id"]), [segment("In this image :"), *segments]))
    file = tmp_path / "png_coco_sample.json"
    file.write_text(json.dumps(narratives))
    dataset = PNGDataset(
        narratives_file=str(file),
        panoptic_json=str(COCO_SAMPLE / "panoptic_examples.json"),
        panoptic_dir=str(COCO_SAMPLE / "panoptic_examples"),
        image_dir=str(COCO_SAMPLE / "input_images"),
        verify_images=True,
    )
    assert len(dataset) == 2
    for index, annotation in enumerate(panoptic["annotations"]):
        sample = dataset[index]
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        for mask, phrase, ids in zip(sample.masks, sample.phrases, sample.meta["segment_ids"]):
            assert mask.sum() == sum(areas[segment_id] for segment_id in ids)
            things = {
                bool(categories[i["category_id"]]["isthing"])
                for i in annotation["segments_info"]
                if i["id"] in ids
            }
            assert phrase.is_plural or {phrase.is_thing} == things


def test_excluded_images_do_not_come_up(files, tmp_path):
    (tmp_path / "instances.json").write_text(json.dumps({"images": [{"id": 8}], "annotations": []}))
    dataset = PNGDataset(**files, exclude_image_ids_file=str(tmp_path / "instances.json"))
    kept = [dataset.record_id(i) for i in range(len(dataset))]
    assert kept == ["png/narrative-0-image-7", "png/narrative-2-image-9"]
    assert dataset.dropped["excluded image"] == ["png/narrative-1-image-8"]
