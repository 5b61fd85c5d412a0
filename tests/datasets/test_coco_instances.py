from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import SIZE, box_polygon, write_image
from pycocotools.coco import COCO

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.datasets.checks import check_dataset
from flmm_detseg.datasets.tinyworld import make_scene
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation.coco_metric import read_truth

SPEC = WorldSpec(num_images=24, seed=5)


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    entry = {
        "id": number,
        "image_id": 1 + number % 2,
        "category_id": 30,
        "bbox": [4, 5, 10, 12],
        "segmentation": [box_polygon(4, 5, 14, 17)],
        "iscrowd": 0,
    }
    entry.update(changes)
    return entry


def content(annotations: list[Any], **changes: Any) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}
        for number in (1, 2, 3)
    ]
    categories = [{"id": 30, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 44, "name": "cow"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write(root: Path, coco: Any) -> dict[str, str]:
    for number in (1, 2, 3):
        write_image(root / "images" / f"{number}.png", number)
    (root / "ann.json").write_text(coco if isinstance(coco, str) else json.dumps(coco))
    return {"ann_file": str(root / "ann.json"), "image_dir": str(root / "images")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, SPEC, progress=False)
    return out


def test_tinyworld_objects_are_the_scene(world):
    dataset = COCOInstancesDataset(
        ann_file=str(world / "coco/annotations/instances_val2017.json"),
        image_dir=str(world / "coco/val2017"),
        with_masks=True,
    )
    for index in range(4):
        sample, scene = dataset[index], make_scene(SPEC.seed, index, "val")
        assert sample.task == "detection"
        assert sample.text == ""
        assert sample.phrases == ()
        assert sample.meta["coco_image_id"] == 500_000 + index
        assert np.array_equal(sample.image, scene.image)
        assert sample.dense.boxes_xyxy.dtype == np.float32
        assert sample.dense.boxes_xyxy.tolist() == [list(map(float, o.box_xyxy)) for o in scene.objects]
        assert [dataset.classes[label] for label in sample.dense.labels] == [o.kind for o in scene.objects]
        assert np.array_equal(sample.dense.masks, np.stack([o.mask for o in scene.objects]))
        assert not sample.dense.crowd.any()


def test_agrees_with_pycocotools(world):
    """Also after the way back: category ids and image ids are the file's own."""
    file = str(world / "coco/annotations/instances_train2017.json")
    reference = COCO(file)
    dataset = COCOInstancesDataset(ann_file=file, image_dir=str(world / "coco/train2017"), with_masks=True)
    assert [r.image_id for r in dataset.records] == reference.getImgIds()
    for index in range(0, len(dataset), 5):
        sample = dataset[index]
        theirs = reference.loadAnns(sample.meta["ann_ids"])
        assert {a["id"] for a in theirs} == set(reference.getAnnIds(sample.meta["coco_image_id"]))
        assert [dataset.category_ids[label] for label in sample.dense.labels] == [
            a["category_id"] for a in theirs
        ]
        for mask, entry in zip(sample.dense.masks, theirs):
            assert np.array_equal(mask, reference.annToMask(entry).astype(bool))


def test_labels_follow_the_ids_or_the_given_names(tmp_path):
    files = write(
        tmp_path, content([annotation(0, category_id=7), annotation(1), annotation(2, category_id=44)])
    )
    dataset = COCOInstancesDataset(**files)
    assert dataset.classes == ("cat", "dog", "cow")
    assert dataset.category_ids == (7, 30, 44)
    assert dataset[0].dense.labels.tolist() == [0, 2]
    assert dataset[0].dense.masks is None
    chosen = COCOInstancesDataset(**files, classes=["cow", "dog"])
    assert chosen.category_ids == (44, 30)
    assert chosen[0].dense.labels.tolist() == [0]
    assert chosen.metainfo["classes"] == ("cow", "dog")
    assert chosen.report()["objects_by_class"] == {"cow": 1, "dog": 1}
    with pytest.raises(ConfigError, match="names 'dgo'.*did you mean `dog`"):
        COCOInstancesDataset(**files, classes=["dgo"])
    with pytest.raises(ConfigError, match="names 'dog' twice"):
        COCOInstancesDataset(**files, classes=["dog", "dog"])


def test_images_without_objects_are_kept_or_dropped(tmp_path):
    files = write(tmp_path, content([annotation(0), annotation(1)]))
    dataset = COCOInstancesDataset(**files, with_masks=True)
    assert len(dataset) == 3
    assert dataset[2].dense.boxes_xyxy.shape == (0, 4)
    assert dataset[2].dense.masks.shape == (0, *SIZE)
    without = COCOInstancesDataset(**files, keep_empty=False)
    assert len(without) == 2
    assert without.dropped == {"no object": ["coco/image-3"]}


def test_boxes_are_cut_to_the_image_and_degenerate_ones_counted(tmp_path):
    height, width = SIZE
    entries = [
        annotation(0, bbox=[-5, -1, width + 50, 9]),
        annotation(2, bbox=[5, 5, 0, 4]),
        annotation(4, bbox=[width + 3, 1, 5, 5]),
        annotation(6, bbox=[9, 9, 5, -2]),
        annotation(8, iscrowd=1, bbox=[0.5, 0.25, 3, 4]),
    ]
    dataset = COCOInstancesDataset(**write(tmp_path, content(entries)))
    assert dataset.dropped == {"degenerate box": [f"annotation {n}" for n in (2, 4, 6)]}
    dense = dataset[0].dense
    assert dense.boxes_xyxy.tolist() == [[0, 0, width, 8], [0.5, 0.25, 3.5, 4.25]]
    assert dense.crowd.tolist() == [False, True]
    assert dataset[0].meta["ann_ids"] == [0, 8]


FAULTS = [
    (dict(category_id=99), "annotation 2: category 99 is not in `categories`"),
    (dict(category_id=[1]), "malformed"),
    (dict(image_id=77), "annotation 2: image 77 is not in `images`"),
    (dict(bbox=[1, 2, 3]), r"annotation 2: `bbox` \[1, 2, 3\] is not"),
    (dict(bbox=[1, 2, "a", 4]), "is not \\[x, y, width, height\\]"),
    (dict(bbox=[1, 2, float("nan"), 4]), "is not \\[x, y, width, height\\]"),
    (dict(bbox=None), "`bbox` None is not"),
    (dict(id=0), "annotation 0: its id occurs twice"),
    (dict(segmentation=None), "annotation 2: mask: no polygon"),
    (dict(segmentation=[[1, 2, 3]]), "annotation 2: mask: a polygon must be"),
    (dict(segmentation={"size": [3, 3], "counts": [9]}), "mask size \\[3, 3\\] is not the image size"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "match"), FAULTS)
def test_a_faulty_annotation_is_an_error_or_takes_its_image_out(tmp_path, change, match):
    files = write(tmp_path, content([annotation(0), annotation(1), annotation(2, **change)]))
    with pytest.raises(DataError, match=match) as caught:
        COCOInstancesDataset(**files, with_masks=True)
    assert "ann.json" in str(caught.value)
    dataset = COCOInstancesDataset(**files, with_masks=True, policy="skip")
    assert len(dataset.problems) == 1
    # an unlisted object would be learned as background, so its image goes; image 77 is not there anyway
    kept = [2, 3] if change.get("image_id") != 77 else [1, 2, 3]
    assert [record.image_id for record in dataset.records] == kept


@pytest.mark.parametrize(
    ("coco", "match"),
    [
        ('{"images": [', "not complete JSON"),
        ([1, 2], "expected an object with images, annotations, categories, got list"),
        ({"images": [], "categories": []}, "key `annotations` is missing"),
        (content([], images={}), "expected a list of images"),
        (content([], categories=[]), "`categories` is empty"),
        (content([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "occurs twice"),
        (content([], categories=[{"id": "1", "name": "a"}]), "`id` must be an integer"),
        (content([], images=[{"id": 1}]), r"images\[0\]: key `file_name` is missing"),
        (content([], images=[dict(id=1, file_name="9.png", height=4, width=4)]), "9.png not found"),
        (
            content([], images=[dict(id=1, file_name="1.png", height=0, width=4)]),
            "`height` is 0; it must be 1 to",
        ),
        (content([], images=[dict(id=1, file_name="1.png", height="x", width=4)]), "malformed"),
        (content([], images=[]), "no usable record"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path, coco, match):
    with pytest.raises(DataError, match=match):
        COCOInstancesDataset(**write(tmp_path, coco))


def test_an_image_listed_twice(tmp_path):
    coco = content([annotation(0)])
    coco["images"].append(coco["images"][0])
    with pytest.raises(DataError, match="image id 1 occurs twice"):
        COCOInstancesDataset(**write(tmp_path, coco))
    assert len(COCOInstancesDataset(**write(tmp_path, coco), policy="skip")) == 3


def test_wrong_size_and_undecodable_masks_are_found_when_read(tmp_path):
    bad_counts = {"size": list(SIZE), "counts": [3, 4]}
    coco = content(
        [annotation(1), annotation(2, segmentation=bad_counts), annotation(4, segmentation=bad_counts)]
    )
    coco["images"][1]["height"] = 10
    coco["images"][1]["width"] = 30
    files = write(tmp_path, coco)
    dataset = COCOInstancesDataset(**files, with_masks=True)
    with pytest.raises(
        DataError, match="annotation 2: RLE counts sum to 7.*annotation 4: RLE counts sum to 7"
    ):
        dataset[0]
    with pytest.raises(DataError, match="its annotation says 10 x 30"):
        dataset[1]
    usable = COCOInstancesDataset(**files, with_masks=True, policy="skip", verify_images=True)
    assert [record.image_id for record in usable.records] == [3]
    check = check_dataset("own", dict(type="COCOInstancesDataset", with_masks=True, **files))
    assert check.figures()["problems_by_kind"] == {"bad mask": 1, "size mismatch": 1}


def test_scores_of_pseudo_labels_are_weights(tmp_path):
    entries = [
        annotation(0),
        annotation(2, pseudo=True, score=0.75),
        annotation(1, pseudo=False, score=0.3),
        annotation(4, category_id=7, pseudo=True, score=0.5),
    ]
    dataset = COCOInstancesDataset(**write(tmp_path, content(entries)), classes=["dog"])
    assert dataset[0].dense.weights.dtype == np.float32
    assert [dataset[index].dense.weights.tolist() for index in range(3)] == [[1.0, 0.75], [1.0], []]
    without = COCOInstancesDataset(**write(tmp_path, content([annotation(0, score=0.3)])))
    assert without[0].dense.weights is None
    for score in (None, 0, 1.5, "0.5", True):
        files = write(tmp_path, content([annotation(0), annotation(1, pseudo=True, score=score)]))
        with pytest.raises(DataError, match="annotation 1: `score` .* of a pseudo-label"):
            COCOInstancesDataset(**files)


def test_images_of_an_evaluation_are_left_out(tmp_path):
    refs = [
        {"image_id": image, "split": split, "ref_id": image}
        for image, split in ((1, "val"), (2, "train"), (3, "testA"))
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs))
    files = write(tmp_path, content([annotation(1), annotation(2), annotation(3, image_id=3)]))
    (tmp_path / "images" / "3.png").unlink()  # what is left out need not be there
    dataset = COCOInstancesDataset(**files, exclude_image_ids_file=str(tmp_path / "refs(unc).p"))
    assert [dataset[index].meta["coco_image_id"] for index in range(len(dataset))] == [2]
    assert dataset.dropped["excluded image"] == ["coco/image-1", "coco/image-3"]
    (tmp_path / "more.txt").write_text("2")
    with pytest.raises(DataError):
        COCOInstancesDataset(
            **files, exclude_image_ids_file=[str(tmp_path / "refs(unc).p"), str(tmp_path / "more.txt")]
        )
    with pytest.raises(DataError, match="no_such.p"):
        COCOInstancesDataset(**files, exclude_image_ids_file=str(tmp_path / "no_such.p"))


# What the evaluation's file may say of the image 42, and what the training's file may.
EXCLUDED = {
    "id": [42],
    "text id": ["42"],
    "padded id": ["000000000042"],
    "name": ["val2017/000000000042.jpg"],
    "COCO": {"images": [{"id": 42, "file_name": "000000000042.jpg"}]},
    "COCO, ids anew": {"images": [{"id": 7, "file_name": "COCO_val2014_000000000042.jpg"}]},
    "COCO, text ids": {"images": [{"id": "7", "file_name": "val\\000000000042.jpg"}]},
    "Roboflow": {"images": [{"id": 0, "file_name": "000000000042_jpg.rf.0a1b2c.jpg"}]},
}  # fmt: skip
TRAINED = [
    ("42", "000000000042.png"), (42, "000000000042.png"), (42.0, "train/000000000042.png"),
    (1, "000000000042.png"), ("x1", "000000000042.png"), (1, "000000000042_png.rf.99aaFF.png"),
]  # fmt: skip


@pytest.mark.case("data/11_excluded_images_with_text_ids_stay")
@pytest.mark.parametrize("excluded", EXCLUDED.values(), ids=EXCLUDED)
@pytest.mark.parametrize(("image_id", "name"), TRAINED)
def test_an_excluded_image_is_known_by_its_name_whatever_its_number(tmp_path, excluded, image_id, name):
    (tmp_path / "excluded.json").write_text(json.dumps(excluded))
    # The other one has the number of the excluded image in a file that numbers anew.
    images = [
        {"id": image_id, "file_name": name},
        {"id": 99 if image_id in ("42", 42) else 42, "file_name": "000000000099.png"},
    ]  # fmt: skip
    for image in images:
        image.update(height=SIZE[0], width=SIZE[1])
        write_image(tmp_path / "images" / image["file_name"], 1)
    files = write(tmp_path, content([], images=images))
    dataset = COCOInstancesDataset(**files, exclude_image_ids_file=str(tmp_path / "excluded.json"))
    assert [record.path.name for record in dataset.records] == ["000000000099.png"]
    assert dataset.report()["dropped"] == {"excluded image": 1}


@pytest.mark.case("data/11_excluded_images_with_text_ids_stay")
def test_own_images_are_known_by_their_names(tmp_path):
    """Two files of one tool number their images from 1 both; what is one picture has one name."""
    evaluated = content([], images=[{"id": 1, "file_name": "val/2.PNG"}, {"id": 2, "file_name": "other.png"}])
    (tmp_path / "val.json").write_text(json.dumps(evaluated))
    (tmp_path / "names.txt").write_text("\ufeff2.png\r\n", encoding="utf-8")
    files = write(tmp_path, content([]))
    for file in ("val.json", "names.txt"):
        dataset = COCOInstancesDataset(**files, exclude_image_ids_file=str(tmp_path / file))
        assert [record.image_id for record in dataset.records] == [1, 3]
    (tmp_path / "none.json").write_text(json.dumps([None]))
    with pytest.raises(DataError, match="none.json: no list of image ids"):
        COCOInstancesDataset(**files, exclude_image_ids_file=str(tmp_path / "none.json"))


@pytest.mark.case("data/18_encodings")
def test_a_mark_of_windows_is_no_fault_and_another_encoding_says_so(tmp_path):
    coco = content([annotation(1)], categories=[{"id": 30, "name": "Müsli"}])
    files = write(tmp_path, coco)
    text = json.dumps(coco, ensure_ascii=False)
    Path(files["ann_file"]).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert COCOInstancesDataset(**files).classes == ("Müsli",)
    Path(files["ann_file"]).write_bytes(text.encode("cp1252"))
    with pytest.raises(DataError, match="save it as UTF-8") as caught:
        COCOInstancesDataset(**files)
    assert "ownload" not in str(caught.value)


@pytest.mark.case("data/03_annotation_file_without_area_or_iscrowd")
def test_an_object_without_a_mask_is_a_box(tmp_path):
    files = write(tmp_path, content([annotation(1, segmentation=[]), annotation(3)]))
    assert len(COCOInstancesDataset(**files)[1].dense.boxes_xyxy) == 2
    with pytest.raises(DataError, match="annotation 1: mask: no polygon"):
        COCOInstancesDataset(**files, with_masks=True)


def test_ids_as_texts_belong_together(tmp_path):
    coco = content([annotation(7, id="7", image_id="2"), annotation(8, image_id=2.0, category_id="30")])
    dataset = COCOInstancesDataset(**write(tmp_path, coco))
    assert dataset[1].meta == {"coco_image_id": 2, "ann_ids": ["7", 8]}
    coco["annotations"][1]["id"] = 7
    with pytest.raises(DataError, match="annotation 7: its id occurs twice"):
        COCOInstancesDataset(**write(tmp_path, coco))


def test_an_empty_category_with_the_name_of_another_is_left_out(tmp_path):
    """Roboflow: the project is category 0, and is often called like its only class."""
    for first, second in ((0, 30), (30, 0)):
        categories = [{"id": first, "name": "dog", "supercategory": "none"}, {"id": second, "name": "dog"}]
        files = write(tmp_path, content([annotation(1)], categories=categories))
        dataset = COCOInstancesDataset(**files)
        assert (dataset.classes, dataset.category_ids) == (("dog",), (30,))
        assert dataset.report()["objects"] == 1
        assert dataset.report()["dropped"] == {"category without an object, another has its name": 1}
        assert read_truth(files["ann_file"]).category_ids == {"dog": 1}
    for entries in ([], [annotation(1), annotation(2, category_id=0)]):
        with pytest.raises(DataError, match="category 'dog' .* occurs twice"):
            COCOInstancesDataset(**write(tmp_path, content(entries, categories=categories)))
