from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.errors import DataError


def write(folder: Path, *entries: dict | str) -> dict[str, str]:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 9, 3), 7, np.uint8)).save(folder / name)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return {"file": str(folder / "questions.jsonl"), "image_dir": str(folder)}


def test_forms_of_references(tmp_path):
    question = {"image": "a.png", "text": "<image>\nwhat ?"}
    files = write(
        tmp_path,
        {**question, "question_id": 1, "answers": ["red", "blue"]},
        {**question, "question_id": 2, "answers": [{"answer": "red", "answer_id": 1}]},
        "",
        {**question, "question_id": 3, "answer": "star", "category": 5},
        {**question, "question_id": 4, "label": "yes"},
        {**question, "question_id": 5, "answer": 1, "choices": ["x", "y"]},
        {**question, "question_id": 6, "answer": "a", "choices": ["x", "y"]},
    )
    dataset = QuestionDataset(**files, prompt_suffix="In one word.")
    samples = [dataset[index] for index in range(len(dataset))]
    known = [["red", "blue"], ["red"], ["star"], ["yes"], ["B"], ["a"]]
    assert [sample.meta["references"] for sample in samples] == known
    assert [sample.text for sample in samples] == ["red", "red", "star", "yes", "B", "a"]
    assert {(sample.prompt, sample.task) for sample in samples} == {("what ?\nIn one word.", "vqa")}
    assert samples[2].meta == {"question_id": 3, "references": ["star"], "choices": [], "kind": "5"}
    assert samples[0].image.shape == (8, 9, 3)
    assert dataset.phrase_texts(0)[0] == samples[0].image_id
    assert [sample.record_id for sample in samples] == [f"question/{n}" for n in range(1, 7)]


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("{", "line 2: not a complete JSON object"),
        ("[]", "line 2: expected a JSON object, got list"),
        ({"text": "?"}, "line 2: `image` is missing"),
        ({"image": "a.png", "text": " "}, "line 2: `text` is missing"),
        ({"image": "a.png", "text": "?"}, "line 2: `question_id` is missing"),
        ({"image": "c.png", "text": "?", "question_id": 1}, "line 2: image .*c.png not found"),
        ({"image": "a.png", "text": "?", "question_id": 1}, "line 2: no reference"),
        ({"image": "a.png", "text": "?", "question_id": 1, "answers": []}, "line 2: no reference"),
        ({"image": "a.png", "text": "?", "question_id": 1, "answer": 7}, "line 2: no reference"),
        (
            {"image": "a.png", "text": "?", "question_id": 1, "answer": "C", "choices": ["x", "y"]},
            "'C' is not the letter",
        ),
        (
            {"image": "a.png", "text": "?", "question_id": 1, "answer": "A", "choices": "xy"},
            "`choices` must be a list",
        ),
        *(
            (
                {"image": "a.png", "text": "?", "question_id": 1, "answer": "A", "boxes": boxes},
                "`boxes` must be",
            )
            for boxes in (
                7,
                [1, 2, 3, 4],
                [[1, 2, 3]],
                [[1, 2, 3, True]],
                [[3, 0, 1, 5]],
                [[0, 0, 1, math.inf]],
            )
        ),
        (
            {"image": "a.png", "text": "?", "question_id": 0, "answer": "A"},
            "id 'question/0' was used in line 1",
        ),
    ],
)
def test_faulty_lines(tmp_path, entry, match):
    files = write(tmp_path, {"image": "a.png", "text": "?", "question_id": 0, "answer": "x"}, entry)
    with pytest.raises(DataError, match=match):
        QuestionDataset(**files)
    dataset = QuestionDataset(**files, policy="skip")
    assert (len(dataset), len(dataset.problems)) == (1, 1)


def test_frames_of_streams_say_what_changes(tmp_path):
    line = {"image": "a.png", "text": "?", "answer": "x"}
    boxes = [[0, 1.5, 3, 4]]
    files = write(
        tmp_path,
        {"question_id": 0, **line},
        {"question_id": 1, **line, "session": "desk", "boxes": boxes},
        {"question_id": 2, **line, "boxes": []},
    )
    plain, frame, empty = (QuestionDataset(**files)[index].meta for index in range(3))
    assert not {"session", "objects_xyxy"} & set(plain)
    assert (frame["session"], frame["objects_xyxy"]) == ("desk", boxes)
    assert empty["objects_xyxy"] == []
    assert "session" not in empty
