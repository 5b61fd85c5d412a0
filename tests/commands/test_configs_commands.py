"""`list-configs`, `copy-config` and `show-config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flmm_detseg import cli
from flmm_detseg.engine.checks.config_diff import effective
from flmm_detseg.inference import instructor
from flmm_detseg.models import read_config

PHOTO = Path(__file__).resolve().parents[2] / "docs" / "images" / "partition_screen.png"


def _run(capsys, *words: str, code: int = 0) -> tuple[list[str], str]:
    with pytest.raises(SystemExit, match=f"^{code}$"):
        cli.main(words)
    shown = capsys.readouterr()
    return shown.out.splitlines(), shown.err


def test_list(capsys):
    lines, _ = _run(capsys, "list-configs", "MERGE")
    assert lines[0].startswith("ablations/max_merge ")
    assert "Does the maximum over the tokens of a phrase beat the mean?" in lines[0]
    assert json.loads(lines[-1]) == {"configs": len(lines) - 1}
    plans, _ = _run(capsys, "list-configs", "[plan of several")
    assert any(line.startswith("tiny/detseg_stages ") for line in plans)
    assert not any(line.startswith("tiny/detseg_joint ") for line in plans)
    _, error = _run(capsys, "list-configs", "nothing like it", code=2)
    assert "no shipped config has 'nothing like it'" in error


def test_a_copy_is_equal_and_never_replaces_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, _ = _run(capsys, "copy-config", "tiny/detseg_joint", "mine")
    (file,) = Path("mine").iterdir()
    assert json.loads(lines[-1])["out"] == str(file) == "mine/detseg_joint.py"
    assert effective(read_config(file)) == effective(read_config("tiny/detseg_joint"))
    _, error = _run(capsys, "copy-config", "tiny/detseg_joint", "mine", code=2)
    assert "mine/detseg_joint.py exists" in error
    _, error = _run(capsys, "copy-config", "detseg_stages", code=2)
    assert "detseg_stages.py is a plan of several runs" in error
    lines, _ = _run(capsys, "copy-config", "tiny/detseg_joint", "other/my.py")
    assert json.loads(lines[-1])["out"] == "other/my.py"
    assert effective(read_config("other/my.py")) == effective(read_config("tiny/detseg_joint"))


@pytest.mark.parametrize(
    "words",
    [
        ("import", "flmm", "published.pth", "mine"),
        (
            "infer",
            "mine",
            "--instruction",
            "find a cat",
            "--image",
            str(PHOTO),
            "--checkpoint",
            "published.pth",
        ),
        ("ground", "mine", "--image", str(PHOTO), "--caption", "a cat", "--phrase", "a cat", "--untrained"),
    ],
)
def test_a_config_given_by_name_is_no_output_either(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    out = Path("configs/mine.py")
    out.write_text("x = 1")
    Path("published.pth").touch()
    if words[0] == "infer":  # which names its files itself
        monkeypatch.setattr(instructor, "result_files", lambda *_: [out])
    _, error = _run(capsys, *words, "--out", str(out), code=2)
    assert "configs/mine.py is an input" in error
    assert out.read_text() == "x = 1"


def test_show_knows_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, _ = _run(capsys, "show-config", "max_merge", "--diff-base")
    assert json.loads(lines[-1])["changed"] == {"model.lmm.rows.merge": "max"}
