"""What instructions mean, and what comes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as rle

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference import Instructor
from flmm_detseg.inference.instructions import match_class, parse_instruction
from flmm_detseg.structures import Prediction


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
    ],
)
def test_steps(instruction: str, wanted: list[tuple[str, str]]) -> None:
    steps = parse_instruction(instruction)
    found = [(step.kind, step.text.rstrip("?") if step.kind != "answer" else step.text) for step in steps]
    assert found == wanted
    for step in steps:
        assert instruction[slice(*step.span)] == step.text


def test_an_instruction_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        parse_instruction("   ")
    with pytest.raises(DataError, match="names nothing"):
        parse_instruction("detect the , .")


def test_class_words() -> None:
    names = ("person", "knife", "bus", "traffic light", "cherry")
    assert match_class("people", names) == [0]
    assert match_class("Knives", names) == [1]
    assert match_class("buses", names) == [2]
    assert match_class("traffic  lights", names) == [3]
    assert match_class("cherries", names) == [4]
    assert match_class("everything", names) == [0, 1, 2, 3, 4]
    assert match_class("unicorns", names) is None


class _Detection:
    class_names = ("star", "ring")


class FakeModel:
    """Finds one star (sure), one ring (unsure); segments the left half; answers with the question."""

    def __init__(self, heads: tuple[str, ...] = ("detection", "phrase")) -> None:
        self.heads = {name: _Detection() for name in heads}
        self.calls: list[str] = []

    def eval(self) -> FakeModel:
        return self

    def detect(self, samples: list) -> list[InstanceData]:
        self.calls.append("detect")
        boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 3.0, 3.0]])
        return [InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([0, 1]))]

    def predict(self, samples: list) -> list[Prediction]:
        self.calls.append(samples[0].text)
        mask = torch.zeros(1, 8, 10, dtype=torch.bool)
        mask[:, :, :5] = True
        logits = mask.float()
        box = torch.tensor([[0.0, 0.0, 5.0, 8.0]])
        return [Prediction("image", (8, 10), logits, None, logits, mask, box, torch.tensor([0.8]))]

    def answer(self, sample, max_new_tokens: int) -> str:
        assert sample.task == "vqa"
        return f"you ask: {sample.prompt}"


def test_a_compound_instruction_gives_text_boxes_masks_picture_and_json(tmp_path) -> None:
    model = FakeModel()
    picture = np.zeros((8, 10, 3), dtype=np.uint8)
    instruction = "detect stars and rings and segment the left side. What is this?"
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
    decoded = rle.decode(content["regions"][1]["segmentation"])
    assert decoded.sum() == 40 == content["regions"][1]["area"]
    assert decoded[:, :5].all()


def test_a_word_that_is_no_class_is_grounded_as_a_phrase() -> None:
    model = FakeModel()
    result = Instructor(model).follow(np.zeros((8, 10, 3), np.uint8), "detect the unicorn")
    assert model.calls == ["unicorn"]
    assert result.regions[0].label == "unicorn"


def test_a_missing_head_is_named() -> None:
    with pytest.raises(ConfigError, match="no phrase head"):
        Instructor(FakeModel(heads=("detection",))).follow(np.zeros((8, 10, 3), np.uint8), "segment the sky")
