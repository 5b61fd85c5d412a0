"""`flmm-detseg chat`: from a pipe, with the model that was named."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from chat_parts import speaking_grounder
from PIL import Image

from flmm_detseg import Grounder
from flmm_detseg.commands import chat as command
from flmm_detseg.errors import DataError, FlmmError
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS

ROOT = Path(__file__).resolve().parents[2]


def _arguments(*words: str):
    parser = ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*words])


def test_lines_of_a_pipe_are_answered_by_the_model_that_was_named(monkeypatch, tmp_path, capsys) -> None:
    loaded = []
    grounder = speaking_grounder()

    def load(cls, *given, **_):
        loaded.append(given[:2])
        return grounder

    monkeypatch.setattr(Grounder, "from_config", classmethod(load))
    monkeypatch.setattr(sys, "stdin", io.StringIO("is the star red ?\nfind\n检测星星\n"))
    file = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(file)
    words = ["--image", str(file), "--out", str(tmp_path / "out"), "--max-new-tokens", "8"]
    figures = command.run(_arguments(*words))
    assert loaded == [(TINY_CONFIG, TINY_HEADS)]
    assert figures["turns"] == 2
    assert all(Path(name).is_file() for name in figures["files"])
    printed = capsys.readouterr()
    assert "> is the star red ?" in printed.out
    assert "names nothing" in printed.out
    assert "tiny model, which knows the pictures of TinyWorld" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "gone.png"], "gone.png does not exist"),
        (["--image", "FILE", "--checkpoint", "c.pth"], "need the config"),
        (["--image", "FILE", "--refiner", "s.pth"], "--refiner goes with --lmm"),
        (["--image", "FILE", "--out", "FOLDER"], "holds images that are read"),
        (["gone", "--image", "FILE"], "config .*gone.* does not exist"),
        (["--image", "BROKEN"], "broken.png"),
    ],
)
def test_what_is_wrong_is_reported_before_the_model_is_loaded(words, message, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Grounder, "from_config", lambda *_, **__: pytest.fail("the model was loaded first"))
    file, broken = tmp_path / "scene.png", tmp_path / "broken.png"
    Image.new("RGB", (8, 8)).save(file)
    broken.write_bytes(b"no picture")
    places = {"FILE": str(file), "FOLDER": str(tmp_path), "BROKEN": str(broken)}
    with pytest.raises(FlmmError, match=message):
        command.run(_arguments(*(places.get(word, word) for word in words)))
    assert issubclass(DataError, FlmmError)


@pytest.mark.long
def test_the_shipped_model_in_a_pipe(tmp_path) -> None:
    """As docs/commands.md shows it."""
    lines = (
        "what colour is the flower ?\nsegment the white ring\n检测圆环\n:outline 22,30 22,60 5,45\n:save\n"
    )
    scene = ROOT / "data" / "models" / "tiny_heads" / "scene.png"
    done = subprocess.run(
        [sys.executable, "-m", "flmm_detseg.cli", "chat", "--image", str(scene), "--out", "out"],
        input=lines.encode(), cwd=tmp_path, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    figures = json.loads(done.stdout.decode().splitlines()[-1])
    assert (figures["turns"], len(figures["files"])) == (4, 6)
    content = json.loads((tmp_path / figures["files"][4]).read_text())
    boxes = {entry["phrase"]: entry["bbox"] for entry in content["annotations"]}
    # The ring is where scene.png has it.
    for name in ("the white ring", "22,30 22,60 5,45"):
        np.testing.assert_allclose(boxes[name], [4, 28, 34, 35], atol=3, err_msg=name)
    assert "purple" in done.stdout.decode().splitlines()
