from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets import LLaVAInstructDataset, QuestionDataset
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.rle import encode_rle


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
        (
            {"image": "a.png", "text": "?", "question_id": 1, "answer": "A", "choices": False},
            "`choices` must be a list",
        ),
        ({"image": "a.png", "text": " <image>\n", "question_id": 1, "answer": "A"}, "nothing but <image>"),
        (
            {"image": "a.png", "text": "<region> ?", "question_id": 1, "answer": "A"},
            "line 2: .*1 times <region> in the question, but 0 `regions`",
        ),
        (
            {"image": "a.png", "text": "?", "question_id": 1, "answer": "A", "regions": [[1, 2]]},
            "line 2: .*0 times <region> in the question, but 1 `regions`",
        ),
        (
            {"image": "a.png", "text": "?", "question_id": 1, "answer": "a <region>"},
            "line 2: .*answer 'a <region>' holds <region>",
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


# Of an image of 8 x 9 pixels.
OUTSIDE = {
    "point": ([9.5, 2], "point .* outside"),
    "box": ([-4, -4, 0, 3], "box .* outside"),
    "size": (encode_rle(np.ones((9, 8), bool)), r"mask is \(9, 8\)"),
    "empty": (encode_rle(np.zeros((8, 9), bool)), "empty"),
}


@pytest.mark.parametrize("region", OUTSIDE)
def test_a_region_outside_of_its_image_is_the_records_problem(tmp_path, region):
    value, match = OUTSIDE[region]
    line = {"image": "a.png", "text": "<region> or <region> ?", "answer": "x"}
    files = write(
        tmp_path,
        {**line, "question_id": 0, "regions": [[9, 8], value]},
        {**line, "question_id": 1, "regions": [[9, 8], [-1, -1, 1, 1]]},
    )
    with pytest.raises(DataError, match=rf"questions.jsonl.*question/0.*`regions`\[1\].*{match}"):
        QuestionDataset(**files)[0]
    with pytest.raises(DataError, match="question/0"):
        QuestionDataset(**files, verify_images=True)
    dataset = QuestionDataset(**files, policy="skip", verify_images=True)
    assert [sample.record_id for sample in dataset] == ["question/1"]
    (problem,) = dataset.problems
    assert "question/0" in str(problem)


def test_regions_of_conversations_stand_in_their_questions(tmp_path):
    files = write(tmp_path, {})
    file = tmp_path / "talk.json"

    def read(*turns: dict, **arguments) -> LLaVAInstructDataset:
        roles = ("human", "gpt") * 2
        told = [{"from": role, **turn} for role, turn in zip(roles, turns)]
        file.write_text(json.dumps([{"id": 1, "image": "a.png", "conversations": told}]))
        return LLaVAInstructDataset(str(file), files["image_dir"], turns="all", **arguments)

    first, answer = {"value": "<image>what ?"}, {"value": "a ring"}
    second = {"value": "and <region> ?", "regions": [[1, 2, 3, 4]]}
    plain, pointing = read(first, answer, second, answer)
    assert plain.regions == ()
    assert pointing.regions[0].box_xyxy == (1, 2, 3, 4)
    with pytest.raises(DataError, match=r"talk.json.*entry 0 .*conversations\[3\]: an answer has `regions`"):
        read(first, answer, second, {**answer, "regions": [[1, 2]]})
    with pytest.raises(DataError, match=r"conversations\[2\]: 1 times <region> .* but 0 `regions`"):
        read(first, answer, {"value": "and <region> ?"}, answer)
    with pytest.raises(DataError, match=r"conversations\[2\]: answer .* holds <region>"):
        read(first, answer, second, {"value": "as <region>"})
    with pytest.raises(DataError, match=r"conversations\[2\]: `regions`: 5 is no point"):
        read(first, answer, {**second, "regions": [5]}, answer)
    outside = read(first, answer, {**second, "regions": [[90, 2]]}, answer)
    with pytest.raises(DataError, match="talk.json.*llava/0-1/turn-1.*outside"):
        outside[1]
    # Another LMM's token: this text is none.
    assert len(read(first, answer, {"value": "and <region> ?"}, answer, region_token="<spot>")) == 2
    with pytest.raises(DataError, match="0 times <spot> in the question, but 1 `regions`"):
        read(first, answer, second, answer, region_token="<spot>")
    for wrong in ("", "a b", None):
        with pytest.raises(ConfigError, match="`region_token` is"):
            read(first, answer, region_token=wrong)
