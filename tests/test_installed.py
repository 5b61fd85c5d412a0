"""What a wheel holds, run from a folder that knows nothing of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_CODE = """
import contextlib, io, json, sys
import flmm_detseg
from flmm_detseg import cli

def last(*words):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            cli.main(words)
        except SystemExit as ended:
            assert ended.code == 0, words
    return json.loads(shown.getvalue().splitlines()[-1])

answers = {
    "package": flmm_detseg.__file__,
    "listed": last("list-configs", "refcoco_png"),
    "copied": last("copy-config", "tiny/detseg_joint", "mine"),
    "read": last("show-config", "mine/detseg_joint.py"),
    "changed": last("show-config", "max_merge", "--diff-base"),
    "ground": last(
        "ground", "--image", "data/models/tiny_heads/scene.png", "--phrase", "a white ring",
        "--caption", "a white ring is left of the orange ring .", "--out", "mask.png",
    ),
}
print(json.dumps(answers))
"""


@pytest.mark.e2e
def test_a_wheel_works_without_the_repository(tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    build = ["-q", "build", "--build-base", str(tmp_path / "build"), "--build-lib", str(site)]
    subprocess.run([sys.executable, "setup.py", *build], cwd=ROOT, check=True, capture_output=True)
    # The files that git has, and no others.
    tracked = subprocess.run(
        ["git", "ls-files", "configs", "data/models"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    shipped = site / "flmm_detseg" / "_shipped"
    packed = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert packed == set(tracked) if (ROOT / ".git").exists() else "configs/tiny/detseg_joint.py" in packed
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert Path(answers["package"]).is_relative_to(site)
    assert answers["listed"]["configs"] >= 8
    assert (here / answers["copied"]["out"]).is_file()
    assert "model" in answers["read"]["keys"]
    assert set(answers["changed"]["changed"]) == {"model.lmm.rows.merge"}
    ((x, y, w, h),) = (entry["bbox"] for entry in answers["ground"]["phrases"])
    assert max(abs(x - 4), abs(y - 28), abs(w - 35), abs(h - 35)) <= 3
