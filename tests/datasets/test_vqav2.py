"""VQAv2's published files, joined, read and scored by the official formula."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from dataset_files import write_image

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.vqav2 import convert_vqav2
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
        convert_vqav2(questions, annotations, image_ids={1}, progress=False)
    with pytest.raises(DataError, match="annotations.json: key `questions` is missing"):
        convert_vqav2(annotations, questions)
    content = json.loads(annotations.read_text())
    del content["annotations"][0]
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="question 73001 has no annotation"):
        convert_vqav2(questions, annotations, progress=False)
