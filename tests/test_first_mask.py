"""The first command of the README, from another folder, in a new process: a mask, and no line that is not ours."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg import cli
from flmm_detseg.models.checkpoint import read_checkpoint
from flmm_detseg.utils.configs import TINY_HEADS

ROOT = Path(__file__).resolve().parents[1]
ANIMATION = ROOT / "docs" / "images" / "first_mask.gif"


def _first_command() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^\.venv/bin/(flmm-detseg ground .*)$", text, re.MULTILINE)
    assert line is not None
    return shlex.split(line[1])


@pytest.mark.e2e
def test_the_first_command_draws_a_mask_and_says_nothing_else(tmp_path):
    command = [sys.executable, "-m", "flmm_detseg.cli", *_first_command()[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    (note,) = done.stderr.splitlines()
    assert note.startswith("no config given: the repository's tiny model")
    picture = np.asarray(Image.open(tmp_path / figures["overlay"]).convert("RGB"))
    shown = np.asarray(Image.open(ROOT / "docs" / "images" / "first_mask.png").convert("RGB"))
    assert picture.shape == shown.shape
    # The README's picture is this command's, whatever the machine rounds.
    assert (picture == shown).all(axis=2).mean() > 0.98
    with Image.open(tmp_path / figures["animation"]) as moving, Image.open(ANIMATION) as moving_shown:
        assert moving.n_frames == moving_shown.n_frames == 3
        for frame in range(3):
            moving.seek(frame)
            moving_shown.seek(frame)
            drawn, stored = (np.asarray(one.convert("RGB")).astype(int) for one in (moving, moving_shown))
            assert np.abs(drawn - stored).mean() < 2
    found = {entry["phrase"]: entry["bbox"] for entry in figures["phrases"]}
    for phrase, box in {
        "a white ring": (4, 28, 35, 35),
        "a large orange ring": (55, 73, 28, 27),
        "a small purple flower": (24, 93, 17, 17),
    }.items():
        np.testing.assert_allclose(found[phrase], box, atol=3)


def test_the_pictures_of_the_first_screen_are_small():
    assert ANIMATION.stat().st_size < 600_000
    assert (ROOT / "docs" / "images" / "first_mask.png").stat().st_size < 300_000


def test_the_stored_heads_say_which_lmm_they_belong_to(tmp_path, monkeypatch, capsys):
    assert read_checkpoint(ROOT / TINY_HEADS).identity is not None
    monkeypatch.chdir(tmp_path)
    image, wrong = ("--image", "data/models/tiny_heads/scene.png"), "configs/cache/tiny_stream_screens.py"
    words = [*image, "--caption", "a ring", "--phrase", "a ring", "--out", "o.png"]
    with pytest.raises(SystemExit, match="^2$"):
        cli.main(["ground", wrong, "--checkpoint", TINY_HEADS, *words])
    assert "CheckpointError" in capsys.readouterr().err
