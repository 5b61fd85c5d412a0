from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import SIZE, write_image
from label_parts import save_detector, save_segmenter
from PIL import Image
from safetensors.torch import load_file, save_file

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.labelling import run
from flmm_detseg.labelling.classes import resolve_classes
from flmm_detseg.labelling.models import GroundingDinoDetector, SamSegmenter
from flmm_detseg.labelling.run import LabelOptions, pseudo_label
from flmm_detseg.labelling.thresholds import Thresholds

TOOL = Path(__file__).parents[2] / "tools/pseudo_label.py"
CPU = torch.device("cpu")
ALL = Thresholds(box=0.0, text=0.0, nms=1.0, min_score=0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"detector": save_detector(folder / "dino"), "segmenter": save_segmenter(folder / "sam")}


@pytest.fixture
def options(models, tmp_path):
    write_image(tmp_path / "images/b.png", 1)
    write_image(tmp_path / "images/sub/a.png", 2, (70, 30))
    (tmp_path / "images/notes.txt").write_text("no image")
    return LabelOptions(
        image_dir=str(tmp_path / "images"),
        out=str(tmp_path / "out/labels.json"),
        classes=("cat", "traffic_light", "coffee cup|teapot"),
        thresholds=ALL,
        **models,
    )


def label(options):
    figures = pseudo_label(options, progress=False)
    return figures, json.loads(Path(options.out).read_text())


def test_labels_are_coco_that_the_reader_takes(options, capsys, monkeypatch):
    arguments = ["--classes", *options.classes, "--nms", "1", "--min-score", "0", "--out", options.out]
    arguments += ["--box-threshold", "0", "--text-threshold", "0", "--max-boxes", "9"]
    arguments += ["--detector", options.detector, "--segmenter", options.segmenter]
    monkeypatch.setattr(sys, "argv", ["pseudo_label.py", options.image_dir, *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert exit_.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    content = json.loads(Path(options.out).read_text())
    assert [entry["file_name"] for entry in content["images"]] == ["b.png", "sub/a.png"]
    assert [entry["name"] for entry in content["categories"]] == ["cat", "traffic_light", "coffee cup"]
    assert figures["images"] == 2
    assert (
        figures["pseudo_annotations"]
        == len(content["annotations"])
        == sum(figures["pseudo_by_class"].values())
    )
    empty = figures["dropped_boxes"].get("empty mask", 0)
    assert len(content["annotations"]) + empty == 18
    assert figures["dropped_boxes"]["over max_boxes"] == 2 * 3
    dataset = COCOInstancesDataset(options.out, options.image_dir, with_masks=True)
    samples = [dataset[0], dataset[1]]
    weights = np.concatenate([sample.dense.weights for sample in samples])
    assert weights.dtype == np.float32
    assert weights.tolist() == [np.float32(entry["score"]) for entry in content["annotations"]]
    areas = [int(mask.sum()) for sample in samples for mask in sample.dense.masks]
    assert areas == [entry["area"] for entry in content["annotations"]]
    assert all(entry["pseudo"] is True for entry in content["annotations"])


def test_boxes_agree_with_the_post_processing_of_transformers(options):
    classes, _ = resolve_classes(["cat", "dog"], ())
    detector = GroundingDinoDetector(options.detector, classes, 0.9, 0.0, CPU)
    image = np.asarray(Image.open(Path(options.image_dir) / "b.png"))
    processor, model = detector._processor, detector._model
    inputs = processor(images=[Image.fromarray(image)], text=[["cat", "dog"]], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.9, text_threshold=0.0, target_sizes=[image.shape[:2]]
    )
    (ours,) = detector.detect([image])
    assert 0 < len(ours) < model.config.num_queries
    torch.testing.assert_close(ours.boxes_xyxy, theirs["boxes"])
    probabilities = outputs.logits[0].sigmoid()
    kept = probabilities[probabilities.amax(-1) > 0.9]
    torch.testing.assert_close(ours.scores, kept[:, [1, 3]].amax(-1))
    assert ours.labels.tolist() == kept[:, [1, 3]].argmax(-1).tolist()


def test_labels_do_not_depend_on_the_images_around(options):
    classes, _ = resolve_classes(["cat", "dog", "teapot"], ())
    detector = GroundingDinoDetector(options.detector, classes, 0.0, 0.0, CPU)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 60), (70, 30), (40, 60))]
    together = detector.detect(images)
    for image, found in zip(images, together):
        torch.testing.assert_close(found.boxes_xyxy, detector.detect([image])[0].boxes_xyxy)


def test_masks_have_the_frame_of_the_image(options):
    segmenter = SamSegmenter(options.segmenter, CPU)
    image = np.random.default_rng(0).integers(0, 255, (45, 80, 3), dtype=np.uint8)
    boxes = torch.tensor([[2.0, 3, 30, 40], [10, 10, 70, 20]]).repeat(20, 1)
    masks = segmenter.segment(image, boxes)
    assert masks.shape == (40, 45, 80)
    assert masks.dtype == bool
    assert (masks[::2] == masks[0]).all()  # also after the first call of the decoder
    assert (masks[0] != masks[1]).any()
    assert segmenter.segment(image, boxes[:0]).shape == (0, 45, 80)


def test_boxes_only_without_a_segmenter(options):
    _, content = label(replace(options, segmenter=None, thresholds=replace(ALL, max_boxes=2)))
    assert len(content["annotations"]) == 4
    for entry in content["annotations"]:
        assert "segmentation" not in entry
        assert entry["area"] == pytest.approx(entry["bbox"][2] * entry["bbox"][3], abs=0.5)
    assert content["info"]["provenance"]["segmenter"] is None


def truth_of(content, options):
    """Ground truth at the place of the first label of the first image, in a file that knows one image more."""
    first = content["annotations"][0]
    category = next(entry for entry in content["categories"] if entry["id"] == first["category_id"])
    images = [
        {"id": 40, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1], "license": 2},
        {"id": 41, "file_name": "elsewhere.png", "height": 5, "width": 5},
    ]
    here = {"id": 900, "image_id": 40, "category_id": 30, "bbox": first["bbox"], "area": 1.5, "iscrowd": 0}
    there = {"id": 901, "image_id": 41, "category_id": 30, "bbox": [0, 0, 2, 2]}
    categories = [{"id": 30, "name": category["name"], "supercategory": "thing"}, {"id": 31, "name": "dog"}]
    truth = {
        "images": images,
        "annotations": [here, there],
        "categories": categories,
        "licenses": [{"id": 2}],
    }
    path = Path(options.out).with_name("truth.json")
    path.write_text(json.dumps(truth))
    return str(path), truth


def test_ground_truth_stays_and_is_not_labelled_again(options):
    options = replace(options, segmenter=None)
    _, before = label(options)
    path, truth = truth_of(before, options)
    figures, content = label(replace(options, ground_truth=path))
    assert content["images"][0] == truth["images"][0]
    assert content["images"][1]["id"] == 42
    assert content["licenses"] == [{"id": 2}]
    assert content["categories"][:2] == truth["categories"]
    kept = [entry for entry in content["annotations"] if not entry.get("pseudo")]
    assert kept == truth["annotations"][:1]
    pseudo = [entry for entry in content["annotations"] if entry.get("pseudo")]
    assert min(entry["id"] for entry in pseudo) == 902
    assert len({entry["id"] for entry in pseudo}) == len(pseudo)
    assert not any(e["bbox"] == kept[0]["bbox"] and e["category_id"] == 30 for e in pseudo)
    assert figures["ground_truth_annotations"] == 1
    assert figures["ground_truth_images_left_out"] == 1
    assert figures["dropped_boxes"]["in the ground truth"] >= 1
    dataset = COCOInstancesDataset(options.out, options.image_dir)
    assert dataset[0].dense.weights[0] == 1.0
    assert dataset[0].dense.weights[1:].max() < 1.0


def test_ground_truth_of_another_size_is_named(options):
    _, content = label(replace(options, segmenter=None))
    path, truth = truth_of(content, options)
    truth["images"][0]["height"] += 1
    Path(path).write_text(json.dumps(truth))
    with pytest.raises(DataError, match=r"b\.png.*its annotation says 41 x 60"):
        label(replace(options, segmenter=None, ground_truth=path))


def test_a_second_run_goes_on_and_writes_the_same(options, monkeypatch):
    options = replace(options, batch_size=1)
    detect = GroundingDinoDetector.detect
    seen = []

    def stopping(self, images):
        if seen:
            raise KeyboardInterrupt
        seen.append(len(images))
        return detect(self, images)

    monkeypatch.setattr(GroundingDinoDetector, "detect", stopping)
    with pytest.raises(KeyboardInterrupt):
        label(options)
    assert not Path(options.out).exists()
    (part,) = Path(options.out).parent.glob("labels.records/*/part-0.jsonl")
    with part.open("a") as file:
        file.write('{"record_id": "sub/a.png", "fa')  # cut off by a kill
    counted = []
    monkeypatch.setattr(GroundingDinoDetector, "detect", lambda *a: counted.append(len(a[1])) or detect(*a))
    figures, resumed = label(options)
    assert counted == [1]
    assert figures["images_of_earlier_runs"] == 1
    assert label(options)[0]["images_of_earlier_runs"] == 2
    assert counted == [1]
    written = Path(options.out).read_bytes()
    label(replace(options, fresh=True, batch_size=2))
    assert counted == [1, 2]
    assert Path(options.out).read_bytes() == written
    assert resumed["annotations"]


def test_other_settings_do_not_mix(options):
    options = replace(options, segmenter=None)
    label(options)
    figures, content = label(replace(options, thresholds=replace(ALL, max_boxes=1)))
    assert figures["images_of_earlier_runs"] == 0
    assert len(content["annotations"]) == 2


def test_provenance_says_what_made_it(options):
    _, content = label(options)
    provenance = content["info"]["provenance"]
    assert provenance["detector"]["name"] == options.detector
    for part in ("detector", "segmenter"):
        for key in ("config_sha256", "preprocessor_sha256", "weights_checksum"):
            assert len(provenance[part][key]) == 64
        assert provenance[part]["revision"] is None
    assert provenance["thresholds"] == {
        "box": 0.0, "text": 0.0, "nms": 1.0, "min_score": 0.0, "max_boxes": 100, "ground_truth_iou": 0.5
    }  # fmt: skip
    assert provenance["prompts"] == ["cat. traffic light. coffee cup. teapot."]
    assert provenance["classes"]["coffee cup"] == ["coffee cup", "teapot"]
    assert provenance["versions"]["transformers"]


def test_broken_images_are_named_or_skipped(options):
    broken = Path(options.image_dir) / "a_broken.png"
    broken.write_bytes((Path(options.image_dir) / "b.png").read_bytes()[:200])
    with pytest.raises(DataError, match="a_broken.png.*cannot be decoded"):
        label(options)
    figures, content = label(replace(options, policy="skip"))
    assert figures["skipped"] == {"broken image": 1}
    assert "a_broken.png" in figures["skipped_images"][0]
    assert [entry["file_name"] for entry in content["images"]] == ["b.png", "sub/a.png"]
    write_image(broken, 5)  # mended: the next run takes it in
    figures, content = label(replace(options, policy="skip"))
    assert figures["images_of_earlier_runs"] == 2
    assert [entry["file_name"] for entry in content["images"]] == ["a_broken.png", "b.png", "sub/a.png"]


def test_list_of_images(options, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("sub/a.png\n\ngone.png\n")
    options = replace(options, segmenter=None, image_list=str(names), policy="skip")
    figures, content = label(options)
    assert [entry["file_name"] for entry in content["images"]] == ["sub/a.png"]
    assert figures["skipped"] == {"missing image": 1}
    names.write_text("gone.png\n")
    with pytest.raises(DataError, match="none of 1 images can be used.*gone.png"):
        label(options)
    names.write_text("b.png\nb.png\n")
    with pytest.raises(DataError, match="b.png occurs twice"):
        label(options)


def test_what_cannot_be_used_is_one_clear_error(options, tmp_path):
    for change, match in (
        ({"detector": options.segmenter}, "model_type is 'sam', 'grounding-dino' is needed"),
        ({"segmenter": str(tmp_path / "gone")}, "no such folder"),
        ({"device": "tpux"}, "`device` is 'tpux'"),
        ({"classes": None}, "no class to look for"),
    ):
        with pytest.raises(ConfigError, match=match):
            label(replace(options, **change))
    with pytest.raises(ConfigError, match="not both"):
        replace(options, categories="c.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        label(replace(options, image_dir=str(tmp_path / "empty")))


def test_weights_that_are_missing_are_named(options, tmp_path):
    folder = tmp_path / "sam"
    shutil.copytree(options.segmenter, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    weights["left_over"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="missing_keys.*mask_decoder.iou_token.weight"):
        SamSegmenter(str(folder), CPU)
    (folder / "model.safetensors").unlink()  # a pickle in its place is not opened
    torch.save(load_file(Path(options.segmenter) / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights cannot be read.*safetensors"):
        SamSegmenter(str(folder), CPU)


def test_an_empty_mask_takes_its_box_along(options, monkeypatch):
    """A reader of masks could not use the annotation; the image stays."""
    monkeypatch.setattr(
        run.SamSegmenter, "segment", lambda self, image, boxes: np.zeros((len(boxes), *image.shape[:2]), bool)
    )
    figures, content = label(options)
    assert content["annotations"] == []
    assert figures["dropped_boxes"] == {"empty mask": 24}
    assert figures["images_without_objects"] == 2


def ground_truth_named(options, *names: str, **changes) -> str:
    """A file with one box in each image, of b.png's size."""
    content = {
        "images": [{"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9]} for k in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
        **changes,
    }  # fmt: skip
    path = Path(options.image_dir).with_name("given.json")
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.case("data/17_ground_truth_lost_by_its_file_names")
@pytest.mark.parametrize("name", ["b.png", "./b.png", "sub\\..\\b.png"])
def test_ground_truth_is_found_by_any_form_of_its_name(options, name):
    options = replace(
        options, segmenter=None, classes=("cat",), ground_truth=ground_truth_named(options, name)
    )
    figures, content = label(options)
    assert (figures["ground_truth_annotations"], figures["ground_truth_images_left_out"]) == (1, 0)
    assert [entry["id"] for entry in content["images"]] == [0, 1]
    assert len(COCOInstancesDataset(options.out, options.image_dir)) == 2


@pytest.mark.case("data/17_ground_truth_lost_by_its_file_names")
@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["images/b.png"], "image images/b.png is not in .*images, but b.png is"),
        (["..\\..\\media\\upload\\b.png"], r"image ../../media/upload/b.png is not in .*, but b.png is"),
        (["b.png", "other/a.png"], "image other/a.png is not in .*, but sub/a.png is"),
        (["c.png", "d.png"], "none of its 2 images is in .*, first c.png"),
        (["b.png", "./b.png"], "./b.png is image 0 already"),
    ],
)
def test_ground_truth_without_its_images_is_an_error(options, names, match, monkeypatch):
    monkeypatch.setattr(run, "GroundingDinoDetector", None)  # reported before a model is loaded
    with pytest.raises(DataError, match=match):
        label(replace(options, ground_truth=ground_truth_named(options, *names)))
    assert not Path(options.out).exists()


@pytest.mark.case("data/17_ground_truth_lost_by_its_file_names")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"category_id": 7}, "annotation 0: category 7 is not in `categories`"),
        ({"iscrowd": "0"}, "annotation 0: .*`iscrowd` is '0'"),
        ({"bbox": [1, 2, 10**400, 4]}, "annotation 0: `bbox`"),
        ({"id": "x"}, "annotation .*: .*`id` is 'x', not an integer"),
    ],
)
def test_faults_of_the_ground_truth_are_reported_not_copied(options, change, match):
    entry = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], **change}
    with pytest.raises(DataError, match=match):
        label(replace(options, ground_truth=ground_truth_named(options, "b.png", annotations=[entry])))
    twice = [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}] * 2
    with pytest.raises(DataError, match="annotation 0: its id occurs twice"):
        label(replace(options, ground_truth=ground_truth_named(options, "b.png", annotations=twice)))


@pytest.mark.case("security/overwrite")
def test_no_input_is_overwritten(options, tmp_path):
    truth = ground_truth_named(options, "b.png")
    names = tmp_path / "names.txt"
    names.write_text("b.png\n")
    link = tmp_path / "link.json"
    link.symlink_to(truth)
    image = str(Path(options.image_dir) / "b.png")
    for out, change in (
        (truth, dict(ground_truth=truth)),
        (str(link), dict(ground_truth=truth)),
        (truth, dict(categories=truth, classes=None)),
        (str(names), dict(image_list=str(names))),
        (image, {}),
    ):
        before = Path(out).read_bytes()
        with pytest.raises(ConfigError, match="is an input .*: the result would replace it"):
            label(replace(options, out=out, **change))
        assert Path(out).read_bytes() == before


@pytest.mark.case("data/18_encodings")
def test_lists_of_windows_tools(options, tmp_path):
    names = tmp_path / "names.txt"
    options = replace(options, segmenter=None, image_list=str(names))
    names.write_bytes("\ufeffb.png\r\n.\\sub\\a.png\r\n".encode())
    _, content = label(options)
    assert [entry["file_name"] for entry in content["images"]] == ["b.png", "sub/a.png"]
    names.write_text("b.png\n./b.png\n")
    with pytest.raises(DataError, match="b.png occurs twice"):
        label(options)
    names.write_bytes("ü.png\n".encode("cp1252"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        label(options)


@pytest.mark.case("data/18_encodings")
def test_a_file_name_of_another_encoding_is_reported_before_the_detection(options, monkeypatch):
    os.close(os.open(os.fsencode(options.image_dir) + b"/\xfc.png", os.O_CREAT | os.O_WRONLY))
    with monkeypatch.context() as patch:
        patch.setattr(run, "GroundingDinoDetector", None)
        with pytest.raises(DataError, match="its file name cannot be stored"):
            label(options)
    figures, content = label(replace(options, segmenter=None, policy="skip"))
    assert figures["skipped"] == {"bad text": 1}
    assert len(content["images"]) == 2


@pytest.mark.case("data/15_elongated_picture_crashes_the_refiner")
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 1), (2, 300)])
def test_thin_images_are_labelled_or_skipped(options, size):
    write_image(Path(options.image_dir) / "thin.png", 3, size)
    figures, content = label(replace(options, policy="skip"))
    assert figures["images"] + sum(figures["skipped"].values()) == 3
