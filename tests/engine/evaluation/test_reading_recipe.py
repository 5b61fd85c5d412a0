"""The recipe of TextVQA and OCR-VQA, from published files to figures, with the tiny LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading_files import write_ocrvqa, write_textvqa

from flmm_detseg.datasets.ocrvqa import convert_ocrvqa
from flmm_detseg.datasets.textvqa import convert_textvqa
from flmm_detseg.datasets.vqav2 import write_jsonl
from flmm_detseg.engine.evaluation.answers import VQA, AnswerOptions
from flmm_detseg.engine.evaluation.evaluate import evaluate

CONFIG = Path(__file__).parents[3] / "configs" / "tiny" / "reading_tiny_llava.py"


@pytest.mark.slow
def test_published_files_become_figures_by_the_right_metric(tmp_path):
    textvqa, ocrvqa = tmp_path / "val.jsonl", tmp_path / "test.jsonl"
    write_jsonl(convert_textvqa(write_textvqa(tmp_path))[0], textvqa)
    write_jsonl(convert_ocrvqa(write_ocrvqa(tmp_path))[0], ocrvqa)
    files = {
        "textvqa.file": textvqa,
        "textvqa.image_dir": tmp_path / "train_images",
        "ocrvqa.file": ocrvqa,
        "ocrvqa.image_dir": tmp_path / "images",
    }
    result = evaluate(
        AnswerOptions(
            config=str(CONFIG),
            untrained=True,
            max_new_tokens=3,
            work_dir=str(tmp_path / "eval"),
            cfg_options=tuple(f"vqa_eval.{key}={path}" for key, path in files.items()),
        ),
        VQA,
    )
    assert result is not None
    figures = result["metrics"]
    assert (figures["textvqa"]["vqav2_num"], figures["ocrvqa"]["exact_num"]) == (3, 5)
    sets = json.loads(Path(result["results"]).read_text())["data_sets"]
    assert {name: item["protocol"]["metric"] for name, item in sets.items()} == {
        "textvqa": "vqav2",
        "ocrvqa": "exact",
    }
    lines = [json.loads(line) for line in Path(sets["ocrvqa"]["exported"][0]).read_text().splitlines()]
    assert lines[0]["prompt"].endswith("\nAnswer the question using a single word or phrase.")
