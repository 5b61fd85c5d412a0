from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_image

from flmm_detseg.engine.checks.data_check import check_data
from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.inference.instructor import InstructionResult
from flmm_detseg.inference.regions import Region
from flmm_detseg.quickstart import steps
from flmm_detseg.utils.outputs import refuse_folder_of_inputs, refuse_overwrite
from flmm_detseg.visualization.report import Report

GROUND = ["c.py", "--image", "a.png", "--caption", "x", "--phrase", "x"]
TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.case("security/overwrite")
def test_an_input_is_known_under_any_name(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("a.json")
    monkeypatch.chdir(tmp_path)
    for out, inputs in (
        ("a.json", [tmp_path / "a.json"]),
        ("./x/../a.json", ["a.json"]),
        ("link.json", ["a.json"]),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="is an input"):
            refuse_overwrite(out, [None, "gone", "n" * 5000, *inputs])
    assert refuse_overwrite("b.json", ["a.json"]) == Path("b.json")
    assert refuse_overwrite("n" * 5000, ["a.json"])
    with pytest.raises(ConfigError, match="x is a folder"):
        refuse_overwrite("x", [])
    with pytest.raises(ConfigError, match="holds images that are read"):
        refuse_folder_of_inputs(".", [tmp_path / "a.json"])
    assert refuse_folder_of_inputs("x", ["a.json"]) == refuse_folder_of_inputs("y", []).with_name("x")


@pytest.mark.case("security/overwrite")
def test_a_result_replaces_a_result_and_nothing_else(tmp_path):
    write_image(tmp_path / "a.png", 1)
    photo = (tmp_path / "a.png").read_bytes()
    result = InstructionResult(
        instruction="x", image=np.zeros((8, 9, 3), np.uint8), text="t", steps=(), uninterpreted=(), regions=()
    )
    with pytest.raises(ConfigError, match="a.png is there and no result of ours"):
        result.save(tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == photo
    (tmp_path / "notes.json").write_text("[]")
    with pytest.raises(ConfigError, match="notes.json is there"):
        result.save(tmp_path, "notes")
    assert result.save(tmp_path / "out", "a") == result.save(tmp_path / "out", "a")


@pytest.mark.case("security/text")
def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    """Half a character (a cut emoji) can come in with the instruction; NaN from a model."""
    words = dict(steps=(), uninterpreted=(), image=np.zeros((8, 9, 3), np.uint8), text="t")
    files = InstructionResult(instruction="\ud800 x", regions=(), **words).save(tmp_path, "half")
    assert json.loads(Path(files["json"]).read_text(encoding="utf-8"))["instruction"] == "\ud800 x"
    region = Region(kind="segment", label="a", score=float("nan"), box_xyxy=(0.0, 0.0, 1.0, 1.0))
    with pytest.raises(RunError, match="score is nan"):
        InstructionResult(instruction="x", regions=(region,), **words).save(tmp_path / "new", "nan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.json", "half.png"]
    page = Report("\ud800", "").write(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<title>" in page


@pytest.mark.case("security/overwrite")
@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("infer.py", ["c.py", "--image", "a.png", "--instruction", "x", "--out", "."]),
        ("ground.py", [*GROUND, "--out", "./a.png"]),
        ("ground.py", [*GROUND, "--out", "o.png", "--coco", "c.py"]),
        ("voc_to_coco.py", ["xml", ".", "--out", "xml/a.xml"]),
        ("voc_to_coco.py", ["xml", ".", "--out", "a.png"]),
        ("vqav2_to_jsonl.py", ["q.json", "c.py", "--out", "q.json"]),
        ("import_flmm_checkpoint.py", ["a.png", "c.py", "--out", "a.png"]),
    ],
)  # fmt: skip
def test_no_tool_writes_over_what_it_reads(tmp_path, monkeypatch, capsys, tool, words):
    """Before a model is loaded: none of these inputs is one that could be."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "xml").mkdir()
    for name in ("c.py", "q.json", "xml/a.xml"):
        (tmp_path / name).write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", [tool, *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert stopped.value.code == 2
    assert "replace" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_an_earlier_result_beside_the_images_is_no_input(tmp_path, monkeypatch, capsys):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<html/>")
    (tmp_path / "coco.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["", f"{tmp_path}/xml", str(tmp_path), "--out", f"{tmp_path}/coco.json"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOLS / "voc_to_coco.py"), run_name="__main__")
    assert "a.xml: its root is <html>" in capsys.readouterr().err


@pytest.mark.case("security/overwrite")
def test_a_preview_is_not_drawn_over_an_image(tmp_path):
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "?", "answer": "x"}\n')
    config = dict(type="QuestionDataset", file=str(tmp_path / "q.jsonl"), image_dir=str(tmp_path))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ConfigError, match="a.png is an input"):
        check_data({"own": config}, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.case("security/overwrite")
def test_a_good_quickstart_survives_any_number_of_failed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work, kept = Path("work_dirs/quickstart"), Path("work_dirs/quickstart_before")
    monkeypatch.setattr(steps, "WORK_DIR", work)

    def fails(state) -> None:
        (work / "half.pth").write_text("half")
        raise RuntimeError("a step fails")

    monkeypatch.setattr(steps, "STEPS", (("a", 1.0, fails),))
    work.mkdir(parents=True)
    (work / "iter_1600.pth").write_text("18 minutes of training")
    (work / "results.json").write_text("{}")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a step fails"):
            steps.quickstart(fast=True)
        assert (kept / "iter_1600.pth").read_text() == "18 minutes of training"
