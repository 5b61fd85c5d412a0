"""ScienceQA's and POPE's published forms, converted, read and scored by their own metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from dataset_files import write_image

from flmm_detseg.cli import main
from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.pope import convert_pope
from flmm_detseg.datasets.scienceqa import convert_scienceqa
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import answer_record


def problem(split: str = "test", **changes) -> dict:
    """As the file has them, with the keys that nobody here reads."""
    return {
        "question": "Which is a solid?", "choices": ["water", "a rock"], "answer": 1, "hint": "", "image": "image.png",
        "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics",
        "category": "States", "skill": "Sort", "lecture": "", "solution": "", "split": split, **changes,
    }  # fmt: skip


def write_problems(root: Path, more: dict | None = None) -> Path:
    problems = {
        "4": problem(hint="Look at the picture.", subject="social science"),
        "5": problem(image=None),
        "11": problem(choices=["a", "b", "c"], answer=0),
        "12": problem("train"),
        **(more or {}),
    }
    for number in ("4", "11"):
        write_image(root / "test" / number / "image.png", int(number))
    (root / "problems.json").write_text(json.dumps(problems))
    return root / "problems.json"


def command(monkeypatch, capsys, *words) -> dict:
    monkeypatch.setattr(sys, "argv", ["flmm-detseg", "data", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def scores(dataset: QuestionDataset, answers: list[str]) -> list[float]:
    records = [
        answer_record(
            s.record_id, s.prompt, answer, s.meta["references"],
            metric=dataset.metric, choices=s.meta["choices"], kind=s.meta["kind"],
        )
        for s, answer in zip((dataset[k] for k in range(len(dataset))), answers, strict=True)
    ]  # fmt: skip
    return [record["score"] for record in records]


def test_scienceqa_s_file_is_read_and_scored_by_letters(tmp_path, monkeypatch, capsys):
    file, out = write_problems(tmp_path), tmp_path / "test.jsonl"
    figures = command(monkeypatch, capsys, "scienceqa", file, "--out", out, "--images", tmp_path)
    counts = {"questions": 2, "images": 2, "skipped": {}, "split": "test", "without_image": 1}
    assert figures == {"out": str(out), **counts}
    dataset = QuestionDataset(str(out), str(tmp_path), prompt_suffix="Answer with the option's letter.")
    first, second = dataset[0], dataset[1]
    assert first.prompt == (
        "Context: Look at the picture.\nWhich is a solid?\nA. water\nB. a rock\nAnswer with the option's letter."
    )
    assert (first.text, second.text) == ("B", "A")
    assert (first.meta["question_id"], first.meta["kind"]) == ("4", "social science")
    assert scores(dataset, ["B", "A. a"]) == [1.0, 1.0]
    assert scores(dataset, ["a rock", "The answer is B."]) == [0.0, 0.0]
    assert convert_scienceqa(file, hints=False)[0][0]["text"].startswith("Which is a solid?")
    assert [line["question_id"] for line in convert_scienceqa(file, "train")[0]] == ["12"]


@pytest.mark.parametrize(
    ("entry", "match", "kind"),
    [
        (5, "not an object", "malformed"),
        (
            {key: value for key, value in problem().items() if key != "choices"},
            "`choices` is missing",
            "missing key",
        ),
        (problem("minival"), "`split` is 'minival'", "malformed"),
        (problem(choices=["a"]), "1 choices", "malformed"),
        (problem(choices="ab"), "`choices`", "malformed"),
        (problem(choices=["a", " "]), r"`choices\[1\]` is empty", "bad text"),
        (problem(answer=2), "`answer` is 2", "malformed"),
        (problem(question="a <image>"), "<image>", "control word"),
        (problem(hint=["x"]), "`hint`", "bad text"),
        (problem(image="gone.png"), "gone.png not found", "missing image"),
    ],
)
def test_a_faulty_problem_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    file = write_problems(tmp_path, {"99": entry})
    with pytest.raises(DataError, match=match) as caught:
        convert_scienceqa(file, image_dir=tmp_path)
    assert "problem 99" in str(caught.value)
    lines, log = convert_scienceqa(file, image_dir=tmp_path, policy="skip")
    assert ([line["question_id"] for line in lines], log.counts()) == (["4", "11"], {kind: 1})


def test_scienceqa_is_refused(tmp_path):
    file = write_problems(tmp_path)
    with pytest.raises(ConfigError, match="`split` is 'minitest'"):
        convert_scienceqa(file, "minitest")
    with pytest.raises(DataError, match="no question about an image in the split 'val'"):
        convert_scienceqa(file, "val")
    file.write_text("[]")
    with pytest.raises(DataError, match="Is it problems.json?"):
        convert_scienceqa(file)


def question(number: int, label: str, **changes) -> dict:
    text = "Is there a dog in the image?"
    return {"question_id": number, "image": "COCO_val2014_1.jpg", "text": text, "label": label, **changes}


def write_pope(root: Path, kind: str, questions: list) -> Path:
    write_image(root / "val2014/COCO_val2014_1.jpg", 1)
    file = root / f"coco_pope_{kind}.json"
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in questions) + "\n")
    return file


def test_pope_s_files_become_one(tmp_path, monkeypatch, capsys):
    files = [
        write_pope(tmp_path, "random", [question(1, "yes"), question(2, "no")]),
        write_pope(tmp_path, "adversarial", [question(1, "no")]),
    ]
    out = tmp_path / "pope.jsonl"
    figures = command(monkeypatch, capsys, "pope", *files, "--out", out, "--images", tmp_path / "val2014")
    counts = {"questions": 3, "images": 1, "skipped": {}, "categories": {"random": 2, "adversarial": 1}}
    assert figures == {"out": str(out), **counts}
    dataset = QuestionDataset(str(out), str(tmp_path / "val2014"), metric="pope")
    assert [dataset[k].meta["question_id"] for k in range(3)] == ["random-1", "random-2", "adversarial-1"]
    assert [dataset[k].meta["kind"] for k in range(3)] == ["random", "random", "adversarial"]
    # POPE's rule: whatever has no "no" or "not" in its first sentence means yes.
    assert scores(dataset, ["I see a dog.", "There is not.", "A cat."]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("entry", "match", "kind"),
    [
        ([], "expected a JSON object", "broken JSON"),
        ({"question_id": 3, "image": "a.jpg", "text": "b?"}, "`label` is missing", "missing key"),
        (question(3, "maybe"), "neither yes nor no", "malformed"),
        (question(3, "no", text=""), "`text` is empty", "bad text"),
        (question(3, "no", image="gone.jpg"), "gone.jpg not found", "missing image"),
        (question(1, "no"), "random-1 occurs twice", "repeated id"),
    ],
)
def test_a_faulty_line_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    file = write_pope(tmp_path, "random", [question(1, "yes"), entry])
    with pytest.raises(DataError, match=match) as caught:
        convert_pope([file], image_dir=tmp_path / "val2014")
    assert "line 2" in str(caught.value)
    lines, log = convert_pope([file], image_dir=tmp_path / "val2014", policy="skip")
    assert (len(lines), log.counts()) == (1, {kind: 1})
    empty = write_pope(tmp_path, "popular", [])
    with pytest.raises(DataError, match="no question that can be used"):
        convert_pope([empty])
