from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from dataset_files import SIZE, edit_refs, write_refcoco
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from flmm_detseg.datasets import RefCOCODataset, collate_samples
from flmm_detseg.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return write_refcoco(tmp_path)


def texts(sample) -> list[str]:
    return [sample.phrase_text(k) for k in range(len(sample.phrases))]


def test_concat_joins_the_objects_of_an_image(files):
    dataset = RefCOCODataset(**files, split="val", sentences="first", layout="concat")
    assert len(dataset) == 3
    sample = dataset[1]
    assert sample.text == "object 0 of image 1 way 0 . object 1 of image 1 way 0 ."
    assert texts(sample) == ["object 0 of image 1 way 0", "object 1 of image 1 way 0"]
    assert sample.masks.shape == (2, *SIZE)
    assert sample.masks.dtype == bool
    assert sample.image.dtype == np.uint8
    assert sample.meta["ann_ids"] == [1010, 1011]


def test_mask_is_the_union_of_its_parts(files):
    sample = RefCOCODataset(**files, split="val", sentences="first")[0]
    first_part, second_part = sample.masks[0][5:17, 4:13], sample.masks[0][7:11, 16:19]
    assert first_part.all()
    assert second_part.all()
    assert sample.masks[0].sum() == 12 * 9 + 4 * 3


def test_rle_masks_equal_polygons(files):
    before = RefCOCODataset(**files, split="val", sentences="first")[0].masks

    def to_rle(refs, instances):
        counts, flat = [], before[0].reshape(-1, order="F")
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flat, [False])).astype(int)))
        counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
        instances["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": counts}
        compressed = coco_mask.encode(np.asfortranarray(before[1].astype(np.uint8)))
        compressed["counts"] = compressed["counts"].decode()
        instances["annotations"][1]["segmentation"] = compressed

    edit_refs(files, to_rle)
    after = RefCOCODataset(**files, split="val", sentences="first")[0].masks
    assert np.array_equal(before, after)


def test_all_sentences_split_gives_each_once_and_keeps_images_together(files):
    dataset = RefCOCODataset(**files, split="val", sentences="all", layout="split")
    samples = [dataset[i] for i in range(len(dataset))]
    assert len(samples) == 3 * 2 * 3
    assert len({s.record_id for s in samples}) == 18
    assert len({s.text for s in samples}) == 18
    order = [s.image_id for s in samples]
    assert order == sorted(order)
    assert all(len(s.phrases) == 1 for s in samples)


def test_all_sentences_concat_covers_the_same_sentences(files):
    def drop_some(refs, instances):
        refs[0]["sentences"] = refs[0]["sentences"][:1]

    edit_refs(files, drop_some)
    split = RefCOCODataset(**files, split="val", sentences="all", layout="split")
    concat = RefCOCODataset(**files, split="val", sentences="all", layout="concat")
    from_concat = sorted(text for i in range(len(concat)) for text in texts(concat[i]))
    assert from_concat == sorted(texts(split[i])[0] for i in range(len(split)))
    assert len(concat) == 9


def test_max_phrases_divides_an_image(files):
    dataset = RefCOCODataset(**files, split="val", sentences="first", max_phrases=1)
    assert len(dataset) == 6
    assert all(len(dataset[i].phrases) == 1 for i in range(6))
    assert len({dataset[i].record_id for i in range(6)}) == 6


def test_random_sentence_depends_on_seed_and_epoch_only(files):
    def draw(seed: int, epoch: int) -> list[str]:
        dataset = RefCOCODataset(**files, split="val", seed=seed)
        dataset.set_epoch(epoch)
        return [dataset[i].text for i in range(len(dataset))]

    assert draw(0, 3) == draw(0, 3)
    epochs = [draw(0, epoch) for epoch in range(12)]
    assert len({tuple(epoch) for epoch in epochs}) > 6
    assert draw(1, 0) != draw(2, 0) or draw(1, 1) != draw(2, 1)
    seen = {text for epoch in epochs for joined in epoch for text in joined.split(" . ")}
    assert len({text.removesuffix(" .") for text in seen}) == 18  # over the epochs, every sentence is used


def test_persistent_workers_see_the_epoch(files):
    dataset = RefCOCODataset(**files, split="val", seed=4)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=collate_samples
    )
    for epoch in range(4):
        dataset.set_epoch(epoch)
        got = [sample.text for batch in loader for sample in batch["samples"]]
        alone = RefCOCODataset(**files, split="val", seed=4)
        alone.set_epoch(epoch)
        assert got == [alone[i].text for i in range(len(alone))]


def test_same_records_as_mmdet(files):
    from flmm_detseg import compat

    compat.install()
    from mmdet.datasets import RefCocoDataset

    theirs = RefCocoDataset(
        data_root="", ann_file=files["instances_file"], split_file=files["refs_file"],
        data_prefix={"img_path": files["image_dir"]}, split="val", text_mode="select_first",
    )  # fmt: skip
    ours = RefCOCODataset(**files, split="val", sentences="first", layout="concat")
    by_path = {ours[i].image_id: ours[i] for i in range(len(ours))}
    assert len(theirs) == len(ours)
    for info in (theirs.get_data_info(i) for i in range(len(theirs))):
        sample = by_path[info["img_path"]]
        assert texts(sample) == info["text"]
        for mask, instance in zip(sample.masks, info["instances"]):
            parts = coco_mask.frPyObjects(instance["mask"], *SIZE)
            assert np.array_equal(mask, coco_mask.decode(coco_mask.merge(parts)).astype(bool))


def test_two_references_of_one_object_are_both_kept(files):
    """mmdet keys by annotation, so that the second replaces the first."""

    def duplicate(refs, instances):
        refs.append({**refs[0], "ref_id": 1, "sentences": [{"raw": "another way", "sent_id": 1}]})

    edit_refs(files, duplicate)
    dataset = RefCOCODataset(**files, split="val", sentences="first")
    assert texts(dataset[0])[-1] == "another way"
    assert len(dataset[0].phrases) == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"sentences": "some"}, "`sentences` is 'some'; allowed: random, first, all"),
        ({"layout": "both"}, "`layout` is 'both'"),
        ({"policy": "ignore"}, "`policy` is 'ignore'; allowed: raise, skip"),
        ({"split": "test"}, "no split 'test'; it has testA, val"),
        ({"max_phrases": 0}, "`max_phrases` is 0"),
    ],
)
def test_wrong_arguments_are_refused(files, arguments, match):
    with pytest.raises(ConfigError, match=match):
        RefCOCODataset(**{**files, **arguments})


def break_polygon(refs, instances):
    instances["annotations"][0]["segmentation"] = [[1, 2, 3]]


def break_size(refs, instances):
    instances["annotations"][0]["segmentation"] = {"size": [3, 4], "counts": [12]}


def drop_annotation(refs, instances):
    del instances["annotations"][0]


def drop_sentences(refs, instances):
    refs[0]["sentences"] = []


def repeat_id(refs, instances):
    refs.insert(0, {**refs[0]})


def lose_image(refs, instances):
    instances["images"][0]["file_name"] = "gone.png"


@pytest.mark.parametrize(
    ("change", "match", "kind"),
    [
        (break_polygon, "ref-6000: mask of annotation 1000: a polygon must be", "bad mask"),
        (break_size, r"mask size \[3, 4\] is not the image size \[40, 60\]", "bad mask"),
        (drop_annotation, "ref-6000: annotation 1000 is not in instances.json", "unknown annotation"),
        (drop_sentences, "ref-6000: it has no sentence", "empty sentence"),
        (repeat_id, "ref-6000: its ref_id occurs twice", "duplicate id"),
        (lose_image, "gone.png not found", "missing image"),
    ],
)
def test_bad_references_raise_or_are_skipped_and_listed(files, change, match, kind):
    edit_refs(files, change)
    with pytest.raises(DataError, match=match):
        RefCOCODataset(**files, split="val")
    dataset = RefCOCODataset(**files, split="val", sentences="first", layout="split", policy="skip")
    num_bad = 2 if change is lose_image else 1
    assert [problem.kind for problem in dataset.problems] == [kind] * num_bad
    expected = 6 if change is repeat_id else 6 - num_bad
    assert len(dataset) == expected
    assert dataset.report()["skipped"] == {kind: num_bad}


def annotation_without_id(refs, instances):
    del instances["annotations"][0]["id"]


def annotation_is_no_object(refs, instances):
    instances["annotations"][0] = None


def image_without_name(refs, instances):
    del instances["images"][0]["file_name"]


def image_of_no_size(refs, instances):
    instances["images"][0]["width"] = "wide"


@pytest.mark.parametrize(
    ("change", "match", "kinds"),
    [
        (annotation_without_id, r"annotations\[0\]: key `id` is missing", ["unknown annotation"]),
        (annotation_is_no_object, r"annotations\[0\]: expected an object.*None", ["unknown annotation"]),
        (image_without_name, r"images\[0\]: key `file_name` is missing", ["unknown image"] * 2),
        (image_of_no_size, r"images\[0\]: malformed \(.*'wide'", ["unknown image"] * 2),
    ],
)
def test_faulty_instances_raise_or_cost_the_references_to_them(files, change, match, kinds):
    edit_refs(files, change)
    with pytest.raises(DataError, match=f"instances.json: {match}"):
        RefCOCODataset(**files, split="val")
    dataset = RefCOCODataset(**files, split="val", sentences="first", layout="split", policy="skip")
    assert [problem.kind for problem in dataset.problems] == ["malformed", *kinds]
    assert len(dataset) == 6 - len(kinds)


@pytest.mark.parametrize("key", ["ref_id", "ann_id", "image_id", "split", "sentences"])
def test_references_without_their_keys_follow_the_policy(files, key):
    edit_refs(files, lambda refs, instances: refs[1].pop(key))
    with pytest.raises(DataError, match=rf"refs\(unc\).p: entry 1: key `{key}` is missing"):
        RefCOCODataset(**files, split="val")
    dataset = RefCOCODataset(**files, split="val", sentences="first", layout="split", policy="skip")
    assert dataset.report()["skipped"] == {"malformed": 1}
    assert len(dataset) == 5


def test_empty_mask_and_broken_image_need_verification_to_be_skipped(files):
    def empty(refs, instances):
        instances["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}

    edit_refs(files, empty)
    image = Path(files["image_dir"]) / "COCO_train2014_000000000001.png"
    image.write_bytes(image.read_bytes()[:200])
    arguments = dict(files, split="val", sentences="first", layout="split")
    lazy = RefCOCODataset(**arguments, policy="skip")
    with pytest.raises(DataError, match="annotation 1000 .*its mask is empty"):
        lazy[0]
    with pytest.raises(DataError, match="000000000001.png: .*image cannot be decoded"):
        lazy[2]
    verified = RefCOCODataset(**arguments, policy="skip", verify_images=True)
    assert verified.report()["skipped"] == {"broken image": 2, "empty mask": 1}
    assert [verified[i].record_id for i in range(3)] == [
        "refcoco/val/ref-6001",
        "refcoco/val/ref-6020",
        "refcoco/val/ref-6021",
    ]


def test_image_of_another_size_than_annotated(files):
    def grow(refs, instances):
        instances["images"][0]["height"] = SIZE[0] + 1

    edit_refs(files, grow)
    with pytest.raises(DataError, match="image is 40 x 60 pixels .*its annotation says 41 x 60"):
        RefCOCODataset(**files, split="val", sentences="first")[0]


def test_nothing_usable_is_an_error(files):
    edit_refs(files, lambda refs, instances: instances["annotations"].clear())
    with pytest.raises(DataError, match=r"no usable record \(6 skipped.*First problem: .*ref-6000"):
        RefCOCODataset(**files, split="val", policy="skip")


def test_truncated_json_names_file_and_line(files):
    path = Path(files["instances_file"])
    path.write_text(path.read_text()[:300])
    with pytest.raises(DataError, match=r"instances.json: .*not complete JSON \(line 1 column \d+"):
        RefCOCODataset(**files, split="val")


MARKER = Path(tempfile.gettempdir()) / "flmm_detseg_was_here"


class Malicious:
    def __reduce__(self):
        return (Path.touch, (MARKER,))


def test_pickle_with_code_is_refused_and_not_run(files):
    MARKER.unlink(missing_ok=True)
    Path(files["refs_file"]).write_bytes(pickle.dumps([Malicious()]))
    with pytest.raises(DataError, match="refs file refused: it names `pathlib.* not plain data"):
        RefCOCODataset(**files, split="val")
    assert not MARKER.exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([{"a": 1}] * 50)[:40]])
def test_damaged_pickle_is_one_clear_error(files, content):
    Path(files["refs_file"]).write_bytes(content)
    with pytest.raises(DataError, match="refs file (is not a complete pickle|refused)"):
        RefCOCODataset(**files, split="val")


def test_images_that_are_evaluated_elsewhere_do_not_come_up(files, tmp_path):
    """Another set's file, whose test split holds an image of this one's val split."""
    plain = RefCOCODataset(**files, split="val", sentences="random")
    others = [dict(image_id=101, split="testB"), dict(image_id=102, split="train")]
    (tmp_path / "refs(umd).p").write_bytes(pickle.dumps(others))
    (tmp_path / "ids.txt").write_text("999")
    excluding = [str(tmp_path / "refs(umd).p"), str(tmp_path / "ids.txt")]
    dataset = RefCOCODataset(**files, split="val", exclude_image_ids_file=excluding)
    assert [plain.record_id(i) for i in range(3)] == [f"refcoco/val/image-{n}" for n in (100, 101, 102)]
    assert [dataset.record_id(i) for i in range(2)] == ["refcoco/val/image-100", "refcoco/val/image-102"]
    assert dataset.dropped == {"excluded image": ["refcoco/val/ref-6010", "refcoco/val/ref-6011"]}
    assert dataset.report()["dropped"] == {"excluded image": 2}
    # Its own file: nothing of val and testA is left, and train was not asked for.
    with pytest.raises(DataError, match="no usable record"):
        RefCOCODataset(**files, split="val", exclude_image_ids_file=files["refs_file"])
    with pytest.raises(DataError, match="gone.p"):
        RefCOCODataset(**files, split="val", exclude_image_ids_file=str(tmp_path / "gone.p"))
