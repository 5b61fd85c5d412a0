"""VQAv2's published files, joined, read and scored by the official formula."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from dataset_files import write_image

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.image_ids import ImageIds
from flmm_detseg.datasets.vqav2 import convert_vqav2, write_jsonl
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import answer_record, vqa_figures

TOOL = Path(__file__).parents[2] / "tools" / "vqav2_to_jsonl.py"


def write(folder: Path) -> tuple[Path, Path]:
    """Three questions about two images; the answers of ten people, in another order than the questions."""
    questions = [
        dict(question_id=42001, image_id=42, question="What is red?"),
        dict(question_id=42002, image_id=42, question="Is it open?"),
        dict(question_id=73001, image_id=73, question="How many?"),
    ]
    said = {42001: ["net"] * 2 + ["a net"] + ["ball"] * 7, 42002: ["yes"] * 9 + ["no"], 73001: ["2"] * 10}
    kinds = {42001: "other", 42002: "yes/no", 73001: "number"}
    annotations = [
        dict(
            question_id=number, image_id=number // 1000, answer_type=kinds[number],
            answers=[dict(answer=text, answer_confidence="yes", answer_id=k + 1) for k, text in enumerate(texts)],
        )
        for number, texts in reversed(said.items())
    ]  # fmt: skip
    files = folder / "questions.json", folder / "annotations.json"
    files[0].write_text(json.dumps(dict(questions=questions, data_subtype="val2014")))
    files[1].write_text(json.dumps(dict(annotations=annotations)))
    for number in (42, 73):
        write_image(folder / "val2017" / f"{number:012d}.jpg", number)
    return files


def test_the_tool_s_file_gives_the_official_accuracy(tmp_path, monkeypatch, capsys):
    files = write(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps({"images": [{"id": 42}, {"id": 5}]}))
    words = [*files, "--out", tmp_path / "new" / "vqa.jsonl", "--only-images", tmp_path / "instances.json"]
    monkeypatch.setattr(sys, "argv", ["vqav2_to_jsonl.py", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stopped.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["questions"], figures["images"]) == (2, 1)
    assert figures["answer_types"] == {"other": 1, "yes/no": 1}
    suffix = "Answer the question using a single word or phrase."
    dataset = QuestionDataset(figures["out"], str(tmp_path / "val2017"), prompt_suffix=suffix)
    samples = [dataset[index] for index in range(len(dataset))]
    assert [sample.prompt for sample in samples] == [f"What is red?\n{suffix}", f"Is it open?\n{suffix}"]
    records = [
        answer_record(s.record_id, s.prompt, answer, s.meta["references"], kind=s.meta["kind"])
        for s, answer in zip(samples, ("A net.", "no"), strict=True)
    ]
    assert [record["metric"] for record in records] == ["vqav2", "vqav2"]
    # Three of ten (articles do not count), and one of ten.
    assert [record["score"] for record in records] == [pytest.approx(0.9), pytest.approx(0.3)]
    assert vqa_figures(records)["accuracy/yes/no"] == pytest.approx(0.3)


def test_names_of_the_2014_images(tmp_path):
    lines = convert_vqav2(*write(tmp_path), image_name="COCO_val2014_{:012d}.jpg", progress=False)
    assert [line["image"] for line in lines] == [f"COCO_val2014_{n:012d}.jpg" for n in (42, 42, 73)]
    assert lines[2]["answers"] == ["2"] * 10


def test_files_that_do_not_belong_together_are_named(tmp_path):
    questions, annotations = write(tmp_path)
    with pytest.raises(ConfigError, match="no place for the image id"):
        convert_vqav2(questions, annotations, image_name="a.jpg")
    with pytest.raises(DataError, match="none of its 3 questions"):
        convert_vqav2(questions, annotations, images=ImageIds(frozenset({1})), progress=False)
    with pytest.raises(DataError, match="annotations.json: key `questions` is missing"):
        convert_vqav2(annotations, questions)
    content = json.loads(annotations.read_text())
    del content["annotations"][0]
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="question 73001 has no annotation"):
        convert_vqav2(questions, annotations, progress=False)


def changed(folder: Path, change) -> tuple[Path, Path]:
    """Files of :func:`write` with ``change(questions, annotations)`` applied; the first question is 42001."""
    files = write(folder)
    contents = [json.loads(file.read_text()) for file in files]
    change(contents[0]["questions"], contents[1]["annotations"])
    for file, content in zip(files, contents):
        file.write_text(json.dumps(content))
    return files


@pytest.mark.case("data/13_vqa_converter_edge_answers")
def test_a_missing_answer_passes_every_step(tmp_path):
    def silent(questions, annotations):
        annotations[-1]["answers"][0]["answer"] = ""  # of "net"

    lines = convert_vqav2(*changed(tmp_path, silent), progress=False)
    write_jsonl(lines, tmp_path / "vqa.jsonl")
    sample = QuestionDataset(str(tmp_path / "vqa.jsonl"), str(tmp_path / "val2017"))[0]
    assert sample.meta["references"] == ["", "net", "a net"] + ["ball"] * 7
    assert sample.text == "net"  # what an answer is learned or shown from says something
    record = answer_record(sample.record_id, sample.prompt, "net", sample.meta["references"])
    assert record["score"] == pytest.approx(0.6)


@pytest.mark.case("data/13_vqa_converter_edge_answers")
@pytest.mark.parametrize("image_id", ["42", 42.0, "000042"])
def test_image_ids_of_other_tools(tmp_path, image_id):
    def change(questions, annotations):
        questions[0].update(image_id=image_id, question_id="42001")

    lines = convert_vqav2(*changed(tmp_path, change), images=ImageIds(frozenset({42})), progress=False)
    assert [(line["question_id"], line["image"]) for line in lines] == [
        (42001, "000000000042.jpg"), (42002, "000000000042.jpg"),
    ]  # fmt: skip


@pytest.mark.case("data/12_null_becomes_the_word_none")
@pytest.mark.case("data/13_vqa_converter_edge_answers")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda q, a: a[-1].update(answers=None), r"annotations.json: question 42001: `answers` is None, not a list"),
        (lambda q, a: a[-1].update(answers=[]), r"question 42001: no answer"),
        (lambda q, a: a[-1]["answers"][1].update(answer=None), r"question 42001: `answers\[1\]` is None, not a text"),
        (lambda q, a: a[-1]["answers"][1].update(answer=["x"]), r"question 42001: `answers\[1\]` is \['x'\], not"),
        (lambda q, a: a[-1]["answers"][1].pop("answer"), r"question 42001: `answers\[1\]` is None, not a text"),
        (lambda q, a: a[-1].update(answers=[{"answer": " "}] * 10), r"question 42001: no answer"),
        (lambda q, a: q[0].update(image_id="cat"), r"questions.json: question 42001: `image_id` is 'cat'"),
        (lambda q, a: q[0].update(image_id=None), r"questions.json: question 42001: `image_id` is None"),
        (lambda q, a: q[0].update(image_id=1e999), r"questions.json: question 42001: `image_id` is inf"),
        (lambda q, a: q[0].update(question=None), r"questions.json: question 42001: `question` is None, not a text"),
        (lambda q, a: q[0].update(question_id=None), r"questions.json: `question_id` is None"),
        (lambda q, a: q.append(q[0]), r"questions.json: question 42001 occurs twice"),
        (lambda q, a: a.append(dict(a[-1])), r"annotations.json: question 42001 is annotated twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_names_its_question(tmp_path, change, match):
    with pytest.raises(DataError, match=match):
        convert_vqav2(*changed(tmp_path, change), progress=False)


def test_a_number_is_an_answer(tmp_path):
    lines = convert_vqav2(
        *changed(tmp_path, lambda q, a: a[0]["answers"][0].update(answer=2)), progress=False
    )
    assert lines[2]["answers"] == ["2"] * 10
