"""OCR-VQA's published form, converted, read and scored by exact match."""

from __future__ import annotations

import json
import sys

import pytest
from reading_files import book, write_ocrvqa

from flmm_detseg.cli import main
from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.ocrvqa import convert_ocrvqa
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import answer_record


def test_the_command_s_file_is_read_and_scored(tmp_path, monkeypatch, capsys):
    file, images, out = write_ocrvqa(tmp_path), tmp_path / "images", tmp_path / "test.jsonl"
    words = ["data", "ocrvqa", file, "--out", out, "--images", images]
    monkeypatch.setattr(sys, "argv", ["flmm-detseg", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == {"out": str(out), "split": "test", "questions": 5, "images": 2, "skipped": {}}
    dataset = QuestionDataset(str(out), str(images), metric="exact")
    samples = [dataset[number] for number in range(5)]
    assert [sample.meta["question_id"] for sample in samples[:4]] == [
        *(f"0195156706-{number}" for number in range(3)),
        "068816112X-0",
    ]
    answers = ("ann bell", "Long Road Home", "No, it is not", "Bo", "soup.")
    records = [
        answer_record(s.record_id, s.prompt, answer, s.meta["references"], metric=dataset.metric)
        for s, answer in zip(samples, answers, strict=True)
    ]
    # Case, articles and full stops do not count; more words than the answer has do.
    assert [record["score"] for record in records] == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_codes_of_splits_and_names_of_files(tmp_path):
    file = write_ocrvqa(tmp_path)
    assert [line["question_id"] for line in convert_ocrvqa(file, "train")[0]] == ["1579905757-0"]
    assert [line["question_id"] for line in convert_ocrvqa(file, "val")[0]] == ["0310259843-0"]
    names = [line["image"] for line in convert_ocrvqa(file)[0]]
    assert names == ["0195156706.jpg"] * 3 + ["068816112X.png"] * 2
    assert convert_ocrvqa(file, image_name="{id}.jpg")[0][-1]["image"] == "068816112X.jpg"


@pytest.mark.parametrize(
    ("entry", "match", "kind"),
    [
        (5, "not an object", "malformed"),
        (book(4, "a.jpg", ["a"]), "`split`", None),
        (book(3, "a.jpg", ["a"], questions=["b?", "c?"]), "2 questions and 1 answers", "malformed"),
        (book(3, "a.jpg", ["a"], answers="a"), "`answers`", "malformed"),
        (book(3, "a.jpg", [""]), r"`answers\[0\]`", None),
        (book(3, "a.jpg", [None]), r"`answers\[0\]`", None),
        (book(3, "a.jpg", ["</s>"]), "</s>", None),
        (book(3, "a.jpg", ["a"], imageURL=3), "`imageURL`", None),
        ({"questions": [], "answers": [], "split": 3}, "`imageURL` is missing", "missing key"),
        (book(3, "a.jpg", ["a"]), "x1.jpg not found", "missing image"),
    ],
)
def test_a_faulty_book_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    good = json.loads(write_ocrvqa(tmp_path).read_text())
    file = write_ocrvqa(tmp_path, {**good, "x1": entry})
    with pytest.raises(DataError, match=f"book x1.*{match}"):
        convert_ocrvqa(file, image_dir=tmp_path / "images")
    lines, log = convert_ocrvqa(file, image_dir=tmp_path / "images", policy="skip")
    assert len(lines) == 5
    assert sum(log.counts().values()) == 1
    assert kind is None or kind in log.counts()


def test_files_and_arguments_of_another_kind_are_named(tmp_path):
    file = write_ocrvqa(tmp_path)
    with pytest.raises(ConfigError, match="`split` is 'testing'"):
        convert_ocrvqa(file, "testing")
    for name in ("a.jpg", "{0}.jpg", "{name}.jpg"):
        with pytest.raises(ConfigError, match="`image_name`"):
            convert_ocrvqa(file, image_name=name)
    with pytest.raises(DataError, match="image folder not found"):
        convert_ocrvqa(file, image_dir=tmp_path / "gone")
    with pytest.raises(DataError, match="no question of the split 'val' among its 1 books"):
        convert_ocrvqa(write_ocrvqa(tmp_path, {"a": book(3, "a.jpg", ["b"])}), "val")
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"expected an object of books by id, got list"):
        convert_ocrvqa(file)
