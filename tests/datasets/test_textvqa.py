"""TextVQA's published form, converted, read and scored by VQA's accuracy."""

from __future__ import annotations

import json
import sys

import pytest
from reading_files import textvqa_entry, write_textvqa

from flmm_detseg.cli import main
from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.textvqa import convert_textvqa
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import answer_record


def command(monkeypatch, capsys, *words) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["flmm-detseg", "data", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().out.splitlines()


def test_the_command_s_file_is_read_checked_and_scored(tmp_path, monkeypatch, capsys):
    file, images, out = write_textvqa(tmp_path), tmp_path / "train_images", tmp_path / "val.jsonl"
    code, printed = command(monkeypatch, capsys, "textvqa", file, "--out", out, "--images", images)
    assert code == 0
    assert json.loads(printed[-1]) == {"out": str(out), "questions": 3, "images": 2, "skipped": {}}
    code, printed = command(monkeypatch, capsys, "check", "questions", out, images)
    assert code == 0
    assert json.loads(printed[-1])["problems"] == 0
    dataset = QuestionDataset(str(out), str(images), metric="vqav2")
    assert dataset.metric == "vqav2"
    records = [
        answer_record(sample.record_id, sample.prompt, answer, sample.meta["references"])
        for sample, answer in zip((dataset[n] for n in range(3)), ("dakota", "single use", "7"), strict=True)
    ]
    assert [record["metric"] for record in records] == ["vqav2"] * 3
    # Eight of ten; ten of ten, a hyphen is a blank; three of ten, a number as a word is the same.
    assert [record["score"] for record in records] == [1.0, 1.0, pytest.approx(0.9)]


def test_words_of_another_ocr_go_with_the_question(tmp_path):
    file = write_textvqa(tmp_path)
    words = tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json"
    tokens = {"003a8ae2ef43b901": ["DAKOTA", "</s>", "single-use"], "00ad3c8b1f6ac1bb": []}
    words.write_text(
        json.dumps({"data": [{"image_id": name, "ocr_tokens": found} for name, found in tokens.items()]})
    )
    lines, _ = convert_textvqa(file, ocr_file=words)
    assert lines[0]["text"] == "what is the brand?\nReference OCR token: DAKOTA, single-use"
    assert lines[2]["text"] == "what is the number?"
    words.write_text(json.dumps({"data": [{"image_id": "a"}]}))
    with pytest.raises(DataError, match=r"data\[0\].*`ocr_tokens` is missing"):
        convert_textvqa(file, ocr_file=words)
    words.write_text(json.dumps({"data": [{"image_id": "a", "ocr_tokens": [1]}]}))
    with pytest.raises(DataError, match=r"data\[0\].*`ocr_tokens`"):
        convert_textvqa(file, ocr_file=words)


GOOD = textvqa_entry(1, "003a8ae2ef43b901", "what?", ["a"] * 10)
BAD = [
    (5, "expected an object", "malformed"),
    ({**GOOD, "question_id": None}, "`question_id`", "malformed"),
    ({key: GOOD[key] for key in GOOD if key != "image_id"}, "`image_id` is missing", "malformed"),
    ({**GOOD, "question": " "}, "`question`", None),
    ({**GOOD, "question": "a <image> b"}, "<image>", None),
    ({**GOOD, "answers": ["", ""]}, "no answer", "malformed"),
    ({**GOOD, "answers": "a"}, "`answers`", "malformed"),
    ({**GOOD, "image_id": "gone"}, "gone.jpg not found", "missing image"),
    (textvqa_entry(34602, "003a8ae2ef43b901", "again?", ["a"] * 10), "34602 occurs twice", "repeated id"),
]


@pytest.mark.parametrize(("entry", "match", "kind"), BAD)
def test_a_faulty_question_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    good = json.loads(write_textvqa(tmp_path).read_text())["data"]
    file = write_textvqa(tmp_path, [*good, entry])
    folder = tmp_path / "train_images"
    with pytest.raises(DataError, match=rf"data\[3\].*{match}"):
        convert_textvqa(file, image_dir=folder)
    lines, log = convert_textvqa(file, image_dir=folder, policy="skip")
    assert len(lines) == 3
    assert sum(log.counts().values()) == 1
    assert kind is None or kind in log.counts()


def test_files_of_another_kind_are_named(tmp_path):
    file = write_textvqa(tmp_path)
    with pytest.raises(ConfigError, match="no place for the image id"):
        convert_textvqa(file, image_name="a.jpg")
    without = [{key: GOOD[key] for key in GOOD if key != "answers"}]
    with pytest.raises(DataError, match="those of test are not published"):
        convert_textvqa(write_textvqa(tmp_path, without))
    with pytest.raises(DataError, match="none of its 1 questions can be used.*First problem"):
        convert_textvqa(write_textvqa(tmp_path, [{**GOOD, "answers": []}]), policy="skip")
    file.write_text('{"data": [')
    with pytest.raises(DataError, match="not complete JSON"):
        convert_textvqa(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="expected an object with data"):
        convert_textvqa(file)


@pytest.mark.case("security/overwrite")
def test_the_command_does_not_write_over_its_input(tmp_path, monkeypatch, capsys):
    file = write_textvqa(tmp_path)
    code, _ = command(monkeypatch, capsys, "textvqa", file, "--out", file)
    assert code == 2
    assert json.loads(file.read_text())["dataset_name"] == "textvqa"
