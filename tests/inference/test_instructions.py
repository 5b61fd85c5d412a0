"""What instructions mean, and what comes of them."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import write_image
from dense_parts import make_dense_case, make_neck
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as rle
from sam_parts import make_refiner
from tiny import tiny_llava

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import DetectionHead
from flmm_detseg.inference import Instructor, instructions
from flmm_detseg.inference.instructions import parse_instruction
from flmm_detseg.inference.instructor import result_names
from flmm_detseg.structures import PackedMasks, Prediction


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        (
            "detect the cars and segment the tree on the left",
            [("detect", "cars"), ("segment", "the tree on the left")],
        ),
        (
            "Detect all stars, rings and the hearts.",
            [("detect", "stars"), ("detect", "rings"), ("detect", "hearts")],
        ),
        ("segment the ring above the red star", [("segment", "the ring above the red star")]),
        (
            "find every dog, then segment the sky. What colour is the dog?",
            [("detect", "dog"), ("segment", "the sky"), ("answer", "What colour is the dog?")],
        ),
        ("what is on the table?", [("answer", "what is on the table?")]),
        ("the red star", [("answer", "the red star")]),
        ("  please segment a cat", [("segment", "a cat")]),
        ("detect everything", [("detect", "everything")]),
        ("segment the man who is running", [("segment", "the man who is running")]),
        ("detect the cars then is there a dog", [("detect", "cars"), ("answer", "is there a dog")]),
        (
            "segment the mask and box on the table",
            [("segment", "the mask"), ("segment", "box on the table")],
        ),
        ("segment the mask and box the car", [("segment", "the mask"), ("detect", "car")]),
        ("can you segment the red ring?", [("segment", "the red ring")]),
        ("Could you please detect the cars for me, please?", [("detect", "cars")]),
        ("I'd like you to find the dog and can you outline it", [("detect", "dog"), ("segment", "it")]),
        ("can you see a dog?", [("answer", "can you see a dog?")]),
        ("a list of cars", [("answer", "a list of cars")]),
        ("list of cars", [("answer", "list of cars")]),
        ("count the cars", [("detect", "cars")]),
        ("count how many cars there are", [("answer", "count how many cars there are")]),
        ("detect and segment the cars", [("detect", "cars"), ("segment", "the cars")]),
        ("segment the ring, which is above the star", [("segment", "the ring, which is above the star")]),
        ("detect the cars, which one is red?", [("detect", "cars"), ("answer", "which one is red?")]),
        (
            "segment the ring that is red and is above it",
            [("segment", "the ring that is red and is above it")],
        ),
        ("only segment the animals", [("segment", "the animals")]),
        ("please only detect the cars", [("detect", "cars")]),
        ("segment only the animals", [("segment", "the animals")]),
        ("find just the dogs, please", [("detect", "dogs")]),
        ("detect everything but only segment the star", [("detect", "everything"), ("segment", "the star")]),
        ("only the red star", [("answer", "only the red star")]),
        (
            "detect the stars and please describe the sky",
            [("detect", "stars"), ("answer", "describe the sky")],
        ),
    ],
)
def test_steps(instruction: str, wanted: list[tuple[str, str]]) -> None:
    parsed = parse_instruction(instruction)
    assert [(step.kind, step.text) for step in parsed.steps] == wanted
    assert parsed.uninterpreted == ()
    for step in parsed.steps:
        assert instruction[slice(*step.span)] == step.text


@pytest.mark.parametrize(
    ("instruction", "wanted", "rest"),
    [
        ("in the image, detect the cars", [("detect", "cars")], ("in the image",)),
        ("In this picture, could you please find the dog?", [("detect", "dog")], ("In this picture",)),
        ("Hello there. Segment the ring!", [("segment", "the ring")], ("Hello there",)),
        ("detect, segment", None, ()),
        ("detect. What is this?", [("answer", "What is this?")], ("detect",)),
        ("in the image, what is red?", [("answer", "in the image, what is red?")], ()),
    ],
)
def test_what_belongs_to_no_step_is_reported(instruction, wanted, rest) -> None:
    if wanted is None:
        with pytest.raises(DataError, match="names nothing"):
            parse_instruction(instruction)
        return
    parsed = parse_instruction(instruction)
    assert [(step.kind, step.text) for step in parsed.steps] == wanted
    assert parsed.uninterpreted == rest


def test_no_word_is_lost() -> None:
    """Every word is in a step, reported, or one of the words that only join."""
    instruction = (
        "Hi all. Could you detect the red cars, the bus, then is there a dog? And segment the box on the table, "
        "which is big, and is blue, then count the cats and please tell me why, thanks"
    )
    parsed = parse_instruction(instruction)
    kept = " ".join([*(step.text for step in parsed.steps), *parsed.uninterpreted])
    joining = "could you detect segment count the then and please".split()
    for word in re.findall(r"\w+", instruction):
        assert word in kept or word.lower() in joining, word


def test_an_instruction_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        parse_instruction("   ")
    with pytest.raises(DataError, match="names nothing"):
        parse_instruction("detect the , .")


@pytest.mark.case("data/16_check_passes_what_training_cannot_read")
@pytest.mark.case("security/text")
@pytest.mark.parametrize("value", [5, None, ["detect cars"], "detect the \ud83d", "detect\0 cars"])
def test_what_is_no_text_asks_for_nothing(value) -> None:
    with pytest.raises(DataError, match="`instruction` (is|holds)"):
        parse_instruction(value)
    with pytest.raises(ConfigError, match="`class name` (is|holds)"):
        tiny_llava().class_embeddings(["cat", value])


# Each of them took more than quadratic time, or exponential: 100 000 characters of it would never end.
@pytest.mark.case("security/parser")
@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("could you please " * 6000 + "describ", "answer"),
        ("could you please " * 6000 + "detect cars", "detect"),
        ("please, " * 12_000 + "detect cars", "detect"),
        ("please " * 14_000 + "hello, detect cars", "detect"),
        ("detect a" + " please" * 14_000 + " x", "detect"),
        ("detect a" + "," * 100_000 + "b", "detect"),
        ("detect the car" + ", which" * 14_000, "detect"),
        ("segment the car" + " thank you" * 10_000, "segment"),
        ("detect" + " " * 100_000 + "a" + "\n" * 100_000 + "and", "detect"),
        ("\n" * 100_000 + "x", "answer"),
        ("detect a" + " and" * 25_000, "detect"),
    ],
    ids=lambda text: text[:20],
)
def test_time_grows_with_the_length(instruction, wanted) -> None:
    steps = parse_instruction(instruction).steps
    assert steps[0].kind == wanted
    assert all(instruction[slice(*step.span)] == step.text for step in steps)


@pytest.mark.case("security/parser")
def test_polite_words_are_read_once() -> None:
    """Counted: on twice the words the pattern is tried twice as often."""

    def work(repetitions: int) -> int:
        calls = 0
        text = "could you please, " * repetitions + "hello, find it"

        class Counting:
            def match(self, *arguments):
                nonlocal calls
                calls += 1
                return pattern.match(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            pattern = instructions._POLITE
            patch.setattr(instructions, "_POLITE", Counting())
            parse_instruction(text)
        return calls

    small, large = work(20), work(40)
    assert 0 < small < large <= 2 * small


def test_runs_of_blanks_stay_in_the_text_of_a_step() -> None:
    instruction = "\u00a0 please\n detect  the  red\tcars ,\r\n and segment   the big  tree  "
    steps = parse_instruction(instruction).steps
    assert [step.text for step in steps] == ["red\tcars", "the big  tree"]
    assert all(instruction[slice(*step.span)] == step.text for step in steps)
    assert parse_instruction("in  the image, detect cars").uninterpreted == ("in the image",)


def fake_head(task: str) -> SimpleNamespace:
    return SimpleNamespace(
        result_of={task},
        class_names=("star", "ring"),
        wants_class_embeddings=False,
        tasks={task},
        refiner=None,
    )


class FakeModel:
    """Finds one star (sure), one ring (unsure); segments the left half; answers with the question.

    It sees no elephant.
    """

    domain = None

    def __init__(self, heads: tuple[str, ...] = ("detection", "phrase")) -> None:
        self.heads = {name: fake_head(name) for name in heads}
        self.calls: list[str] = []
        self.classes_when_detecting: tuple[str, ...] = ()

    def eval(self) -> FakeModel:
        return self

    def detect(self, samples: list) -> list[InstanceData]:
        self.calls.append("detect")
        self.classes_when_detecting = self.heads["detection"].class_names
        boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 3.0, 3.0]])
        return [InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([0, 1]))]

    def predict(self, samples: list, *, keep_attention: bool = False) -> list[Prediction]:
        return [self._segmented(sample.text) for sample in samples]

    def _segmented(self, text: str) -> Prediction:
        self.calls.append(text)
        mask = torch.zeros(1, 8, 10, dtype=torch.bool)
        mask[:, :, :5] = "elephant" not in text
        logits = mask.float()
        box = torch.tensor([[0.0, 0.0, 5.0, 8.0]]) * float(mask.any())
        return Prediction("image", (8, 10), logits, None, PackedMasks.pack(mask), box, torch.tensor([0.8]))

    def answer(self, sample, max_new_tokens: int) -> str:
        assert sample.task == "vqa"
        return f"you ask: {sample.prompt}"


def test_a_compound_instruction_gives_text_boxes_masks_picture_and_json(tmp_path) -> None:
    model = FakeModel()
    picture = np.zeros((8, 10, 3), dtype=np.uint8)
    instruction = "In the picture, detect stars and rings and segment the left side. What is this?"
    result = Instructor(model).follow(picture, instruction)
    assert model.calls == ["detect", "the left side"], "objects are detected once for all classes"
    assert [(r.kind, r.label) for r in result.regions] == [("detect", "star"), ("segment", "the left side")]
    assert "rings: 0 found." in result.text
    assert "you ask: What is this?" in result.text
    files = result.save(tmp_path, "scene")
    assert Image.open(files["picture"]).size[0] >= 10
    content = json.loads((tmp_path / "scene.json").read_text())
    assert content["regions"][0]["bbox"] == [1.0, 2.0, 4.0, 4.0]
    assert "segmentation" not in content["regions"][0]
    assert content["uninterpreted"] == ["In the picture"]
    decoded = rle.decode(content["regions"][1]["segmentation"])
    assert decoded.sum() == 40 == content["regions"][1]["area"]
    assert decoded[:, :5].all()


def test_a_word_that_is_no_class_is_grounded_as_a_phrase() -> None:
    model = FakeModel()
    result = Instructor(model).follow(np.zeros((8, 10, 3), np.uint8), "detect the unicorn")
    assert model.calls == ["unicorn"]
    (region,) = result.regions
    assert (region.kind, region.label, region.box_xyxy) == ("detect", "unicorn", (0.0, 0.0, 5.0, 8.0))
    assert result.text == "unicorn: found as a phrase."
    wide = replace(region, box_xyxy=(0.0, 0.0, 9.0, 8.0))  # a box that the mask's outline does not hide
    pictures = [
        replace(result, regions=(replace(wide, kind=kind),)).overlay() for kind in ("detect", "segment")
    ]
    assert not np.array_equal(*pictures), "the box that was asked for is drawn"


def test_a_group_after_segment_is_its_classes_objects() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    model = FakeModel()
    result = Instructor(model).follow(picture, "only segment the shapes")
    assert model.calls == ["detect"]
    assert [(r.kind, r.label, r.score_of) for r in result.regions] == [("segment", "star", "detector")]
    assert (result.text, result.uninterpreted) == ("the shapes: 1 found.", ())
    assert result.regions[0].mask is None, "nothing makes masks of boxes"
    refiner = model.heads["phrase"].refiner = make_refiner()
    model.lmm = SimpleNamespace(device=torch.device("cpu"))
    (region,) = Instructor(model).follow(picture, "只分割图形").regions
    (logits,) = refiner.masks_from_boxes([picture], [torch.tensor([[1.0, 2.0, 5.0, 6.0]])])
    np.testing.assert_array_equal(region.mask, logits[0].numpy() > 0)
    assert region.box_xyxy == (1.0, 2.0, 5.0, 6.0), "the detector's"
    # A class is a phrase after "segment"; a group that no class belongs to is one after both verbs.
    model.calls.clear()
    Instructor(model).follow(picture, "segment the star, only detect the animals")
    assert model.calls == ["the star", "animals"]


def test_sentences_are_in_the_language_of_their_words() -> None:
    picture = np.zeros((8, 10, 3), np.uint8)
    result = Instructor(FakeModel()).follow(picture, "检测星星和独角兽，并把左边的树分割出来。 detect rings")
    assert [(r.kind, r.label) for r in result.regions] == [
        ("detect", "star"), ("detect", "独角兽"), ("segment", "左边的树"),
    ]  # fmt: skip
    assert result.text == "星星：找到 1 个。 独角兽：按短语找到。 左边的树：已分割。 rings: 0 found."


def test_what_is_not_there_gives_no_region() -> None:
    picture = np.zeros((8, 10, 3), np.uint8)
    result = Instructor(FakeModel()).follow(picture, "detect the elephant and segment the grey elephant")
    assert result.regions == ()
    assert result.text == "elephant: not found. the grey elephant: not found."
    assert result.as_dict()["regions"] == []
    assert result.overlay().shape[2] == 3


def test_images_of_one_name_are_refused_before_a_result_is_overwritten(monkeypatch, capsys, tmp_path) -> None:
    assert result_names(["a/cat.jpg", "b/dog.jpg"]) == ["cat", "dog"]
    images = [str(tmp_path / name) for name in ("a/cat.jpg", "b/cat.png")]
    for image in images:
        write_image(Path(image), 0)
    config = "configs/tiny/detseg_joint.py"
    monkeypatch.setattr(sys, "argv", ["infer.py", config, "--image", *images, "--instruction", "find"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(Path(__file__).parents[2] / "tools" / "infer.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert f"{images[0]} and {images[1]} would both be written as cat.png" in capsys.readouterr().err


def test_results_are_exported(monkeypatch, capsys, tmp_path) -> None:
    """The command with a model that finds the same in every image."""
    images = [str(tmp_path / name) for name in ("a.jpg", "b.png")]
    for image in images:
        Image.new("RGB", (10, 8)).save(image)
    monkeypatch.setattr("flmm_detseg.models.model_from_config", lambda *_, **__: FakeModel())
    out = tmp_path / "out"
    words = ["--image", *images, "--instruction", "segment the ring", "--format", "coco", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["infer.py", "configs/tiny/detseg_joint.py", *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(Path(__file__).parents[2] / "tools" / "infer.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    figures = json.loads(printed.out.splitlines()[-1])
    content = json.loads((out / "coco" / "annotations.json").read_text())
    found = json.loads((out / "a.json").read_text())["regions"]
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.png"]
    assert [entry["bbox"] for entry in content["annotations"]] == [region["bbox"] for region in found] * 2
    assert figures["exports"]["coco"]["annotations"] == 2 * len(found) > 0


def test_a_missing_head_is_named() -> None:
    with pytest.raises(ConfigError, match="no phrase head"):
        Instructor(FakeModel(heads=("detection",))).follow(np.zeros((8, 10, 3), np.uint8), "segment the sky")


def test_an_open_head_takes_the_classes_it_is_given() -> None:
    neck = make_neck(scales=(2, 1))
    head = DetectionHead(neck, ("star", "ring"), "open", hidden_size=32, feat_channels=16, stacked_convs=1)
    lmm = tiny_llava()
    model = FakeModel()
    model.lmm, model.heads["detection"] = lmm, head
    head.set_class_embeddings(lmm.class_embeddings(["star", "ring"]))
    own = head.fcos.conv_cls.embeddings
    instructor = Instructor(model, classes=["red square", "circle"])
    other = Instructor(model, classes=["green ring", "large star", "circle"])
    assert head.class_names == ("star", "ring")
    result = instructor.follow(
        np.zeros((8, 10, 3), np.uint8), "detect the circle, the red squares and a star"
    )
    assert model.calls == ["detect", "star"], "what is no class any more is grounded as a phrase"
    assert [(r.kind, r.label) for r in result.regions] == [("detect", "red square"), ("detect", "star")]
    assert model.classes_when_detecting == ("red square", "circle")
    other.follow(np.zeros((8, 10, 3), np.uint8), "detect everything")
    assert model.classes_when_detecting == ("green ring", "large star", "circle")
    assert head.class_names == ("star", "ring"), "the model's own classes are back"
    assert head.fcos.conv_cls.embeddings is own
    assert head.fcos.num_classes == 2
    names = ["red square", "circle", "left ring"]
    by_hand = DetectionHead(neck, names, "open", hidden_size=32, feat_channels=16, stacked_convs=1)
    by_hand.load_state_dict(head.state_dict())
    by_hand.set_class_embeddings(lmm.class_embeddings(names))
    states, batch = make_dense_case()
    with head.other_classes(lmm.class_embeddings(names), names):
        outputs = head.fcos(neck(states, batch))[0]
    for ours, expected in zip(outputs, by_hand.fcos(neck(states, batch))[0], strict=True):
        assert torch.equal(ours, expected)
        assert ours.shape[1] == 3
    assert head.fcos(neck(states, batch))[0][0].shape[1] == 2


def test_classes_need_an_open_head() -> None:
    closed = FakeModel()
    closed.heads["detection"] = DetectionHead(
        make_neck(), ("star", "ring"), feat_channels=16, stacked_convs=1
    )
    with pytest.raises(ConfigError, match="`classifier`='open'; this one knows only star, ring"):
        Instructor(closed, classes=["dog"])
    with pytest.raises(ConfigError, match="the model has none"):
        Instructor(FakeModel(heads=("phrase",)), classes=["dog"])
