"""TinyWorld on disk: real readers read it, and it is never overwritten by another world."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from flmm_detseg.compat import install
from flmm_detseg.datasets import PNGDataset, QuestionDataset, RefCOCODataset
from flmm_detseg.datasets.tinyworld import make_scene, narrate
from flmm_detseg.datasets.tinyworld.formats import CATEGORY_ID
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.errors import ConfigError

SPEC = WorldSpec(num_images=28, seed=11)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    assert write_world(out, SPEC, progress=False)["written"]
    return out


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_with_any_number_of_workers(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", SPEC, workers=2, progress=False)
    assert hashes(tmp_path / "again") == hashes(world)


def test_an_equal_world_is_kept_and_another_one_refused(world: Path, tmp_path: Path) -> None:
    assert not write_world(world, SPEC, progress=False)["written"]
    with pytest.raises(ConfigError, match="another TinyWorld.*seed: there 11, asked 12"):
        write_world(world, WorldSpec(28, 12), progress=False)
    (tmp_path / "mine.txt").write_text("notes")
    with pytest.raises(ConfigError, match="is not empty"):
        write_world(tmp_path, SPEC, progress=False)
    with pytest.raises(ConfigError, match="at least"):
        write_world(tmp_path / "new", WorldSpec(3, 0), progress=False)


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


def test_a_changed_annotation_is_noticed(copy: Path) -> None:
    assert not write_world(copy, SPEC, progress=False)["written"]
    (copy / "llava/val.json").write_text("[]")
    with pytest.raises(ConfigError, match="val.json is missing or changed.*Remove .*copy, run again"):
        write_world(copy, SPEC, progress=False)


@pytest.mark.parametrize(
    "folder",
    [
        "coco/train2017",
        "coco/annotations/panoptic_val2017",
        "ade/annotations/training",
        "reasonseg/train",
        "screens/train_0000",
    ],
)
def test_a_changed_missing_or_renamed_picture_is_noticed(copy: Path, folder: str) -> None:
    first, second, *rest = sorted((copy / folder).iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=f"{folder.removesuffix('/train_0000')} has files that changed"):
        write_world(copy, SPEC, progress=False)
    first.write_bytes(content)
    assert not write_world(copy, SPEC, progress=False)["written"]
    first.rename(first.with_name("other"))
    with pytest.raises(ConfigError, match="files that changed"):
        write_world(copy, SPEC, progress=False)
    (copy / folder / "other").unlink()
    with pytest.raises(ConfigError, match=r"holds \d+ files instead of \d+. Remove .*copy, run again"):
        write_world(copy, SPEC, progress=False)


def test_a_deleted_folder_of_pictures_is_noticed(copy: Path) -> None:
    shutil.rmtree(copy / "coco/val2017")
    with pytest.raises(ConfigError, match="coco/val2017 holds 0 files instead of 12"):
        write_world(copy, SPEC, progress=False)


def test_a_world_of_an_older_manifest_is_refused_clearly(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["format"], manifest["folders"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ConfigError, match=r"another TinyWorld \(format: there None, asked 3\)\. Choose another"
    ):
        write_world(copy, SPEC, progress=False)
    for content in ("{", "[]"):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(ConfigError, match="manifest.json is no manifest.*Remove .*copy, run again"):
            write_world(copy, SPEC, progress=False)


def test_the_manifest_covers_every_file(world: Path) -> None:
    manifest = json.loads((world / "manifest.json").read_text())
    for path in (p for p in world.rglob("*") if p.is_file()):
        name = str(path.relative_to(world))
        in_folder = any(name.startswith(f"{folder}/") for folder in manifest["folders"])
        assert in_folder or name in {*manifest["files"], "manifest.json", "contact_sheet.png"}, name


def test_region_questions_point_at_what_they_ask_about(world: Path) -> None:
    def read(name: str) -> list:
        return list(QuestionDataset(str(world / "regions" / f"{name}.jsonl"), str(world / "coco")))

    splits = {name: read(name) for name in ("train", "val", "val_without")}
    seen = set()
    for split in ("train", "val"):
        scenes = [make_scene(SPEC.seed, index, split) for index in range(SPEC.counts()[split])]
        assert len(splits[split]) == 2 * sum(len(scene.objects) for scene in scenes)
        for sample in splits[split]:
            image, number, asked = sample.meta["question_id"].split("-")
            scene = scenes[int(image) - {"train": 1, "val": 500_000}[split]]
            (obj,) = [obj for obj in scene.objects if obj.object_id == int(number)]
            assert sample.text == getattr(obj, asked)
            assert sample.prompt.count("<region>") == 1
            (region,) = sample.regions
            if region.point_xy is not None:
                x, y = region.point_xy
                assert obj.mask[int(y), int(x)]
                form = "point"
            elif region.box_xyxy is not None:
                assert region.box_xyxy == obj.box_xyxy
                form = "box"
            else:
                assert np.array_equal(region.mask, obj.mask)
                form = "mask"
            assert sample.meta["kind"] == f"{asked} {form}"
            seen.add(sample.meta["kind"])
    assert len(seen) == 6
    assert not {sample.image_id for sample in splits["train"]} & {sample.image_id for sample in splits["val"]}
    for plain, pointing in zip(splits["val_without"], splits["val"], strict=True):
        assert (plain.record_id.split("/")[1], plain.text) == (
            pointing.record_id.split("/")[1],
            pointing.text,
        )
        assert plain.prompt == pointing.prompt.replace("<region>", "this")
        assert plain.regions == ()


def test_refcoco_reads_as_scenes(world: Path) -> None:
    splits = {}
    for split in ("train", "val", "testA", "testB"):
        dataset = RefCOCODataset(
            refs_file=str(world / "refcoco/refs(unc).p"),
            instances_file=str(world / "refcoco/instances.json"),
            image_dir=str(world / "coco"),
            split=split,
            sentences="first",
            layout="split",
        )
        splits[split] = {dataset[i].image_id for i in range(len(dataset))}
    names = [name for members in splits.values() for name in members]
    assert len(names) == len(set(names))  # splits share no image
    scene = make_scene(SPEC.seed, 0, "val")
    sample = next(s for s in (dataset_item(world, "val", i) for i in range(50)) if "500000" in s.image_id)
    assert np.array_equal(sample.image, scene.image)
    assert any(np.array_equal(sample.masks[0], o.mask) for o in scene.objects)


def dataset_item(world: Path, split: str, index: int):  # noqa: ANN201
    dataset = RefCOCODataset(
        refs_file=str(world / "refcoco/refs(unc).p"),
        instances_file=str(world / "refcoco/instances.json"),
        image_dir=str(world / "coco"),
        split=split,
        sentences="all",
        layout="split",
    )
    return dataset[index]


def test_mmdet_reads_refcoco(world: Path) -> None:
    install()
    from mmdet.datasets import RefCocoDataset

    dataset = RefCocoDataset(
        data_root=str(world) + "/",
        ann_file="refcoco/instances.json",
        split_file="refcoco/refs(unc).p",
        data_prefix=dict(img_path="coco/"),
        split="val",
        text_mode="select_first",
    )
    ours = RefCOCODataset(
        refs_file=str(world / "refcoco/refs(unc).p"),
        instances_file=str(world / "refcoco/instances.json"),
        image_dir=str(world / "coco"),
        split="val",
        sentences="first",
        layout="split",
    )
    theirs = sorted(text for i in range(len(dataset)) for text in dataset.get_data_info(i)["text"])
    assert theirs == sorted(ours[i].phrase_text(0) for i in range(len(ours)))


def test_png_reads_as_narratives(world: Path) -> None:
    dataset = PNGDataset(
        narratives_file=str(world / "coco/annotations/png_coco_val2017.json"),
        panoptic_json=str(world / "coco/annotations/panoptic_val2017.json"),
        panoptic_dir=str(world / "coco/annotations/panoptic_val2017"),
        image_dir=str(world / "coco/val2017"),
    )
    sample, scene = dataset[0], make_scene(SPEC.seed, 0, "val")
    text = narrate(scene, SPEC.seed)
    assert sample.text == text.text
    for phrase, named, mask in zip(sample.phrases, text.phrases, sample.masks, strict=True):
        assert phrase.spans == named.spans
        assert (phrase.is_plural, phrase.is_thing) == (named.is_plural, named.is_thing)
        parts = [o.mask for o in scene.objects if o.object_id in named.object_ids]
        parts += [r.mask for r in scene.stuff if r.region_id in named.region_ids]
        assert np.array_equal(mask, np.any(parts, axis=0))


def test_coco_instances_and_label_maps(world: Path) -> None:
    coco = COCO(str(world / "coco/annotations/instances_train2017.json"))
    scene = make_scene(SPEC.seed, 2, "train")
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    for annotation, obj in zip(annotations, scene.objects, strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), obj.mask)
        assert annotation["category_id"] == CATEGORY_ID[obj.kind]
    labels = np.array(Image.open(world / "ade/annotations/training/000000000003.png"))
    for obj in scene.objects:
        assert (labels[obj.mask] == CATEGORY_ID[obj.kind]).all()
    for region in scene.stuff:
        assert (labels[region.mask] == CATEGORY_ID[region.name]).all()


def test_llava_conversations(world: Path) -> None:
    records = json.loads((world / "llava/train.json").read_text())
    for record in records:
        assert (world / "coco" / record["image"]).is_file()
        turns = record["conversations"]
        assert turns[0]["value"].startswith("<image>\n")
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)


def test_reason_seg_polygons_fill_to_the_target(world: Path) -> None:
    files = sorted((world / "reasonseg/train").glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())
        assert (file.parent / record["imagePath"]).is_file()
        assert record["text"]
        assert record["is_sentence"]
        mask = np.zeros((record["imageHeight"], record["imageWidth"]), np.uint8)
        for shape in record["shapes"]:
            # as LISA's reader does
            cv2.fillPoly(mask, [np.array([shape["points"]], np.int32).reshape(-1, 2)], 1)
        scene = make_scene(SPEC.seed, int(file.stem) - 1, "train")
        best = max(iou(mask.astype(bool), o.mask) for o in scene.objects)
        assert best > 0.85, file


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_screens_keep_their_wallpaper(world: Path) -> None:
    records = json.loads((world / "screens/train.json").read_text())
    sequence = [r for r in records if r["sequence_id"] == records[0]["sequence_id"]]
    assert len(sequence) >= 10
    images = [np.array(Image.open(world / "screens" / r["image"])).astype(int) for r in sequence]
    foregrounds = [np.any([coco_mask.decode(e["mask"]) for e in r["elements"]], axis=0) for r in sequence]
    for image, foreground in zip(images[1:], foregrounds[1:], strict=True):
        shared = ~(foreground | foregrounds[0])
        assert shared.mean() > 0.5
        assert np.array_equal(image[shared], images[0][shared])
    clocks = [e["text"] for r in sequence for e in r["elements"] if e["name"] == "clock"]
    assert len(set(clocks)) == len(sequence)
    for record, clock in zip(sequence, clocks, strict=True):
        assert record["questions"][0] == {"question": "what time is it ?", "answer": clock}
