"""LLaVA conversations, and joint samples made of them and of dense readers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_image
from tiny import tiny_llava

from flmm_detseg.datasets import (
    COCOInstancesDataset,
    JointDataset,
    LLaVAInstructDataset,
    SemanticMapsDataset,
    image_ids,
)
from flmm_detseg.datasets.image_ids import coco_id_of_path, read_images
from flmm_detseg.datasets.tinyworld import make_questions, make_scene
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import (
    JointTemplate,
    build_prompt,
    draw_mask,
    parse_answer,
    polygons_to_mask,
    quantise_boxes,
)
from flmm_detseg.language.image_places import PLACES, place_of
from flmm_detseg.structures import Sample

SPEC = WorldSpec(num_images=20, seed=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, SPEC, progress=False)
    return out


def llava(world: Path, **changes: Any) -> LLaVAInstructDataset:
    arguments = dict(file=str(world / "llava/val.json"), image_dir=str(world / "coco"))
    return LLaVAInstructDataset(**{**arguments, **changes})


def coco(world: Path, **changes: Any) -> COCOInstancesDataset:
    arguments = dict(
        ann_file=str(world / "coco/annotations/instances_val2017.json"), image_dir=str(world / "coco/val2017")
    )
    return COCOInstancesDataset(**{**arguments, **changes})


def turn(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


def entry(**changes: Any) -> dict[str, Any]:
    conversations = [
        turn("human", "<image>\nWhat is it?"),
        turn("gpt", "A cat."),
        turn("human", "Its colour?"),
        turn("gpt", "Grey."),
    ]
    return {"id": "x", "image": "000000000001.png", "conversations": conversations, **changes}


def write(root: Path, entries: Any) -> dict[str, str]:
    for number in (1, 2):
        write_image(root / "images" / f"{number:012d}.png", number)
    (root / "llava.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return {"file": str(root / "llava.json"), "image_dir": str(root / "images")}


def test_all_turns_are_the_scene_s_questions(world):
    dataset = llava(world, turns="all")
    scene = make_scene(SPEC.seed, 0, "val")
    asked = [dataset[i] for i in range(len(dataset)) if "500000" in dataset.record_id(i)]
    questions = make_questions(scene, SPEC.seed)
    assert [(s.prompt, s.text) for s in asked[1:]] == [(q.text, q.answer) for q in questions]
    assert np.array_equal(asked[0].image, scene.image)
    assert all(s.task == "vqa" and s.phrases == () and "<image>" not in s.prompt for s in asked)
    assert len({s.record_id for s in asked}) == len(asked)


def test_first_and_random_turn(world):
    everything = llava(world, turns="all")
    pairs = {everything.question_and_answer(i) for i in range(len(everything))}
    first, drawn = llava(world, turns="first"), llava(world, turns="random", seed=1)
    assert len(first) == len(drawn) < len(everything)
    assert [first[i].prompt for i in range(len(first))] == [
        "Please give me a description of the image."
    ] * len(first)

    def epoch(dataset: LLaVAInstructDataset, number: int) -> list[tuple[str, str]]:
        dataset.set_epoch(number)
        return [(dataset[i].prompt, dataset[i].text) for i in range(len(dataset))]

    epochs = [epoch(drawn, number) for number in range(12)]
    assert epochs[3] == epoch(llava(world, seed=1), 3)
    assert len({tuple(e) for e in epochs}) == 12
    assert {pair for e in epochs for pair in e} <= pairs
    assert len({pair for e in epochs for pair in e}) > len(pairs) / 2
    assert drawn.question_and_answer(2) == epochs[11][2]


def test_entries_without_image_and_excluded_ones_are_reported(tmp_path):
    entries = [entry(), entry(image="000000000002.png"), entry(image=None), {"conversations": []}]
    files = write(tmp_path, entries)
    dataset = LLaVAInstructDataset(**files, exclude_image_ids=[2])
    assert len(dataset) == 1
    assert dataset.dropped == {"excluded image": ["llava/1-x"], "no image": ["llava/2-x", "llava/3"]}
    with pytest.raises(DataError, match="no usable record"):
        LLaVAInstructDataset(**files, exclude_image_ids=[1, 2])
    with pytest.raises(ConfigError, match="`turns` is 'some'"):
        LLaVAInstructDataset(**files, turns="some")


def test_exclusion_lists(tmp_path, world):
    refs = [dict(image_id=1, split="train"), dict(image_id=2, split="val"), dict(image_id=3, split="testA")]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (tmp_path / "ids.json").write_text("[5, 6]")
    (tmp_path / "ids.txt").write_text("7\n8\n")
    files = [str(tmp_path / name) for name in ("refs(unc).p", "ids.json", "ids.txt")]
    assert read_images(files).ids == {2, 3, 5, 6, 7, 8}
    assert 500_000 in read_images(str(world / "coco/annotations/instances_val2017.json")).coco_ids
    assert len(llava(world, exclude_image_ids_file=files)) == len(llava(world))
    (tmp_path / "half.json").write_text('{"images": [1')
    (tmp_path / "other.json").write_text('{"pictures": []}')
    (tmp_path / "words.txt").write_text("one two")
    for name in ("half.json", "other.json", "words.txt", "gone.txt"):
        with pytest.raises(DataError, match=name):
            read_images(str(tmp_path / name))


def test_an_exclusion_list_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    (tmp_path / "ids.txt").write_text("7\n8\n")
    (tmp_path / "link.p").symlink_to(tmp_path / "refs")  # of a store that names files by their content
    (tmp_path / "refs").write_bytes(pickle.dumps([dict(image_id=2, split="val")]))
    files = [str(tmp_path / "ids.txt"), str(tmp_path / "link.p")]
    opened: list[Path] = []
    images = image_ids._images
    monkeypatch.setattr(image_ids, "_images", lambda path: (opened.append(path), images(path))[1])
    for _ in range(2):
        assert read_images(files).ids == {2, 7, 8}
        assert len(opened) == 2
    (tmp_path / "ids.txt").write_text("7\n8\n9\n")
    assert read_images(files, [1]).ids == {1, 2, 7, 8, 9}
    assert len(opened) == 3


def test_excluding_the_evaluation_images_leaves_nothing_of_them(world):
    with pytest.raises(DataError, match="no usable record"):
        llava(world, exclude_image_ids_file=str(world / "coco/annotations/instances_val2017.json"))


def test_only_twelve_digits_are_coco_s():
    assert coco_id_of_path("coco/train2017/000000033471.jpg") == 33471
    assert coco_id_of_path("COCO_train2014_000000033471.jpg") == 33471
    for other in (
        "vg/VG_100K/2386621.jpg",
        "gqa/images/2354786.jpg",
        "ocr_vqa/140031996.jpg",
        "textvqa/0a12.jpg",
    ):
        assert coco_id_of_path(other) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(conversations="hello"), "must be a list of questions and answers"),
        (dict(conversations=[]), "must be a list of questions and answers"),
        (dict(conversations=[turn("human", "<image> hi")]), "in turn"),
        (
            dict(conversations=[turn("gpt", "a"), turn("human", "b")]),
            r"conversations\[0\]: `from` must be 'human'",
        ),
        (
            dict(conversations=[turn("human", "a"), turn("human", "b")]),
            r"conversations\[1\]: `from` must be 'gpt'",
        ),
        (dict(conversations=[turn("human", "<image>"), turn("gpt", "b")]), r"\[0\]: `value` is empty"),
        (dict(conversations=[turn("human", "a"), turn("gpt", 3)]), r"\[1\]: `value` is 3, not a text"),
        (dict(conversations=[turn("human", "<image><image> a"), turn("gpt", "b")]), "2 times <image>"),
        (dict(conversations=[turn("human", "a"), turn("gpt", "see <image>")]), "1 times <image>"),
        (dict(image=["1.png", 2]), "`image` is missing, or neither the name"),
        (dict(image=["1.png", "2.png"]), "1.png not found"),
        (dict(image="gone.png"), "gone.png not found"),
    ],
)
def test_a_faulty_conversation_is_an_error_or_a_reported_skip(tmp_path, changes, match):
    files = write(tmp_path, [entry(), entry(**changes)])
    with pytest.raises(DataError, match=match) as caught:
        LLaVAInstructDataset(**files)
    assert r"llava.json: entry 1 (id x)" in str(caught.value)
    dataset = LLaVAInstructDataset(**files, policy="skip")
    assert len(dataset) == len(dataset.problems) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('[{"id"', "not complete JSON"),
        ({"a": 1}, "expected a list of conversations"),
        ([3], "entry 0: expected an"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path, content, match):
    with pytest.raises(DataError, match=match):
        LLaVAInstructDataset(**write(tmp_path, content))


def test_joint_boxes_and_masks_stand_in_the_text(world):
    dense = coco(world, with_masks=True)
    dataset = JointDataset(
        dense, sections=["segmentations", "detections"], box_order="raster", mask_form="seg"
    )
    assert len(dataset) == len(dense)
    for index in range(4):
        sample, plain = dataset[index], dense[index]
        assert sample.task == "joint"
        assert sample.prompt == build_prompt(
            "List the objects in the image.", ("detections", "segmentations")
        )
        boxes = quantise_boxes(plain.dense.boxes_xyxy, plain.image_size).tolist()
        names = [dense.classes[label] for label in plain.dense.labels]
        lines = sample.text.split("\n")
        wanted = sorted(f"{name} [{', '.join(map(str, box))}]" for name, box in zip(names, boxes))
        assert sorted(lines[0].removeprefix("Detections: ").split("; ")) == wanted
        # boxes and masks in the same order
        listed = [item.split(" [")[0] for item in lines[0].removeprefix("Detections: ").split("; ")]
        assert lines[1] == "Segmentations: " + "; ".join(f"{name} <SEG>" for name in listed)
        assert [sample.phrase_text(k) for k in range(len(sample.phrases))] == listed
        assert all(sample.text[p.spans[0][1] :].startswith(" <SEG>") for p in sample.phrases)
        tops = [np.flatnonzero(mask.any(1))[0] for mask in sample.masks]
        assert tops == sorted(tops)  # raster order
        assert {m.tobytes() for m in sample.masks} == {m.tobytes() for m in plain.dense.masks}
        assert [sample.text[a:b] for a, b in sample.sections] == [lines[0] + "\n", lines[1]]
        assert sample.dense is not None
        assert sample.meta["coco_image_id"] == plain.meta["coco_image_id"]


def test_joint_answers_come_from_conversations_about_the_image(world):
    answers = llava(world, turns="all")
    dataset = JointDataset(coco(world), sections=["answer", "detections"], answers=answers)
    # val2017 holds val, testA and testB; conversations are of val alone
    assert len(dataset) == SPEC.counts()["val"]
    assert len(dataset.dropped["no answer"]) == SPEC.counts()["testA"] + SPEC.counts()["testB"]
    pairs = {(answers.phrase_texts(i)[0], *answers.question_and_answer(i)) for i in range(len(answers))}
    drawn = set()
    for epoch in range(6):
        dataset.set_epoch(epoch)
        sample = dataset[1]
        answer = sample.text.split("\n")[0].removeprefix("Answer: ")
        question = sample.prompt.removeprefix(build_prompt("", ("answer", "detections")))
        assert (sample.image_id, question, answer) in pairs
        drawn.add(answer)
    assert len(drawn) > 2
    assert [path.name for path in dataset.annotation_files] == ["instances_val2017.json", "val.json"]


def test_joint_masks_of_a_label_map(world):
    maps = dict(
        type=SemanticMapsDataset, label_dir=str(world / "ade/annotations/training"),
        image_dir=str(world / "coco/train2017"), classes="tinyworld", reduce_zero_label=True,
    )  # fmt: skip
    dataset = JointDataset(maps, sections=["segmentations"], max_masks=3, mask_form="seg")
    sample = dataset[0]
    assert len(sample.phrases) == len(sample.masks) == 3
    sizes = sample.masks.sum((1, 2))
    assert (np.diff(sizes) <= 0).all()
    for phrase, mask in zip(range(3), sample.masks):
        (value,) = np.unique(sample.dense.semantic[mask])
        assert dataset.dataset.classes[value] == sample.phrase_text(phrase)


def test_joint_polygons_are_read_back_as_the_masks(world):
    dataset = JointDataset(coco(world, with_masks=True), ["segmentations"], max_points=40)
    for index in range(3):
        sample = dataset[index]
        items = parse_answer(sample.text).answer.segmentations
        order = np.argsort(-box_areas(sample), kind="stable")
        masks = sample.dense.masks[order]
        names = [dataset.dataset.classes[label] for label in sample.dense.labels[order]]
        assert sorted(item.label for item in items) == sorted(names)
        for item in items:
            drawn = polygons_to_mask(item.polygons, sample.image_size)
            assert max((drawn & mask).sum() / (drawn | mask).sum() for mask in masks) > 0.7
        assert sample.phrases == (), "outlines are words: nobody reads their states"
        assert sample.masks.shape == (0, *sample.image_size)
    with pytest.raises(ConfigError, match="`mask_form` is 'rle'"):
        JointDataset(coco(world, with_masks=True), ["segmentations"], mask_form="rle")


@pytest.mark.parametrize(
    "form",
    [
        dict(type=JointTemplate, masks="runs", side=0),
        dict(type=JointTemplate, masks="places", words=True, numbers="data/models/tiny_llava"),
        "template_runs",
        "template_places",
    ],
    ids=str,
)
def test_joint_masks_as_run_lengths_and_places(world, form):
    dense = coco(world, with_masks=True)
    dataset = JointDataset(dense, ["detections", "segmentations"], text_format=form)
    for index in range(3):
        sample = dataset[index]
        parsed = dataset.text_format.parse(sample.text, sample.image_size)
        assert parsed.report.num_bad == parsed.report.num_repaired == 0
        items = parsed.answer.segmentations
        assert [item.label for item in items] == [box.label for box in parsed.answer.detections]
        order = np.argsort(-box_areas(sample), kind="stable")
        for item, mask in zip(items, sample.dense.masks[order], strict=True):
            if dataset.text_format.masks == "places":
                assert item.polygons == (place_of(mask),)
                assert f"{item.label} {PLACES[place_of(mask)]}" in sample.text
            elif dataset.text_format.side == 0:
                assert np.array_equal(draw_mask(item, sample.image_size), mask)
            else:
                assert item.runs.size == (64, 64)
                drawn = draw_mask(item, sample.image_size)
                assert (drawn & mask).sum() / (drawn | mask).sum() > 0.6
        assert sample.phrases == ()
        assert sample.masks.shape == (0, *sample.image_size)


def test_objects_between_the_cells_of_a_grid_are_left_out_of_the_masks_alone(tmp_path):
    form = dict(type=JointTemplate, masks="runs", side=4)
    dataset = JointDataset(
        crowded(tmp_path, 40), ["detections", "segmentations"], text_format=form, max_characters=100_000
    )
    answer = dataset.text_format.parse(dataset[0].text, (200, 300)).answer
    assert len(answer.detections) == 40
    # Cells of 50 x 75 pixels; the pixel in the middle of each.
    on_grid = [mask[25::50, 37::75].any() for mask in dataset.dataset[0].dense.masks]
    assert 10 < sum(on_grid) == len(answer.segmentations) < 40


def test_control_words_that_joint_samples_would_write_are_refused(tmp_path, world):
    with pytest.raises(ConfigError, match="`question` holds the control word '</s>'"):
        JointDataset(coco(world), question="List </s> all.")
    reader = crowded(tmp_path, 1)
    reader.classes = ("<end_of_turn>",)
    with pytest.raises(ConfigError, match="`class name` holds the control word '<end_of_turn>'"):
        JointDataset(reader)


def box_areas(sample: Sample) -> np.ndarray:
    return (sample.dense.boxes_xyxy[:, 2:] - sample.dense.boxes_xyxy[:, :2]).prod(1)


def crowded(folder: Path, num_objects: int) -> COCOInstancesDataset:
    """One image of squares, each smaller than the one before."""
    write_image(folder / "a.png", 1, (200, 300))
    annotations = []
    for index in range(num_objects):
        side = 60 - index
        x, y = (index * 37) % 230, (index * 23) % 130
        outline = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append(
            dict(
                id=index + 1, image_id=1, category_id=1 + index % 2, bbox=[x, y, side, side],
                segmentation=[outline], iscrowd=0,
            )
        )  # fmt: skip
    content = dict(
        images=[dict(id=1, file_name="a.png", height=200, width=300)], annotations=annotations,
        categories=[dict(id=1, name="dog"), dict(id=2, name="cat")],
    )  # fmt: skip
    (folder / "ann.json").write_text(json.dumps(content))
    return COCOInstancesDataset(str(folder / "ann.json"), str(folder), with_masks=True)


@pytest.mark.parametrize("mask_form", ["text", "seg"])
@pytest.mark.parametrize("box_order", ["area", "raster"])
def test_a_crowded_image_loses_whole_objects_not_the_end_of_its_text(tmp_path, mask_form, box_order):
    reader = crowded(tmp_path, 40)
    forms = dict(sections=["detections", "segmentations"], mask_form=mask_form, box_order=box_order)
    whole = JointDataset(reader, **forms, max_characters=100_000)
    full = parse_answer(whole[0].text).answer
    assert len(full.detections) == len(full.segmentations) == 40
    assert whole.report()["left_out"] == 0
    room = len(whole[0].text) // 3
    dataset = JointDataset(reader, **forms, max_characters=room)
    sample = dataset[0]
    answer = parse_answer(sample.text).answer
    kept = len(answer.detections)
    assert 5 < kept < 20
    assert len(answer.segmentations) == kept
    assert room * 0.8 < len(sample.text) <= room
    assert dataset.report()["left_out"] == 40 - kept
    sizes = sorted((b.box[2] - b.box[0]) * (b.box[3] - b.box[1]) for b in full.detections)
    assert sorted((b.box[2] - b.box[0]) * (b.box[3] - b.box[1]) for b in answer.detections) == sizes[-kept:]
    assert [b.label for b in answer.detections] == [m.label for m in answer.segmentations]
    assert len(sample.phrases) == len(sample.masks) == (kept if mask_form == "seg" else 0)


def test_a_crowded_image_of_outlines_fits_a_processor(tmp_path):
    """No phrase after the last token, and the end token is learned."""
    lmm = tiny_llava(max_length=600)
    reader = crowded(tmp_path, 40)
    dataset = JointDataset(reader, ["detections", "segmentations"], max_characters=400)
    inputs = lmm.prepare(dataset[0])
    assert len(inputs.input_ids) < 600
    assert inputs.input_ids[-1] == lmm.processor.tokenizer.eos_token_id
    longest = JointDataset(reader, ["detections", "segmentations"], max_characters=100_000)
    cut = lmm.prepare(longest[0])
    assert len(cut.input_ids) == 600, "without a limit the text is cut; the test shows nothing"
    with pytest.raises(ConfigError, match="`max_characters` is 0"):
        JointDataset(reader, max_characters=0)


def test_one_object_stays_however_little_room_there_is(tmp_path):
    dataset = JointDataset(crowded(tmp_path, 5), max_characters=3)
    assert len(parse_answer(dataset[0].text).answer.detections) == 1
    assert dataset.report()["left_out"] == 4


def test_joint_leaves_crowds_out_and_says_none(tmp_path):
    write_image(tmp_path / "a.png", 1)
    crowd = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], iscrowd=1)
    content = dict(
        images=[dict(id=1, file_name="a.png", height=40, width=60)], annotations=[crowd],
        categories=[dict(id=1, name="dog")],
    )  # fmt: skip
    (tmp_path / "ann.json").write_text(json.dumps(content))
    reader = COCOInstancesDataset(str(tmp_path / "ann.json"), str(tmp_path))
    sample = JointDataset(reader)[0]
    assert sample.text == "Detections: none"
    assert sample.masks.shape == (0, 40, 60)


def test_joint_sections_that_the_reader_cannot_fill(world):
    for sections, match in (
        (["segmentations"], "gives neither masks"),
        (["boxes"], "`sections` is"),
        ([], "`sections` is"),
        (["answer"], "belong together"),
    ):
        with pytest.raises(ConfigError, match=match):
            JointDataset(coco(world), sections=sections)
    with pytest.raises(ConfigError, match="gives no boxes"):
        JointDataset(llava(world))
    with pytest.raises(ConfigError, match="must be a LLaVAInstructDataset"):
        JointDataset(coco(world), sections=["answer"], answers=coco(world))
