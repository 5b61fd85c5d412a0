"""Numbers that are none, on their way into files."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch

import flmm_detseg
from flmm_detseg.errors import DataError, RunError
from flmm_detseg.utils.finite import is_finite, not_finite
from flmm_detseg.utils.whole_files import (
    dump_json,
    new_folder,
    put_in_place,
    read_json,
    write_json,
    write_text,
)

# Facts of our own that go to a hash, a header or a command line: they hold no figures.
NO_FIGURES = {
    "store/serialise.py", "cache/digests.py", "cache/fingerprint.py", "cache/own_tensors.py",
    "datasets/tinyworld/stream_files.py", "datasets/tinyworld/world.py", "datasets/voc.py", "datasets/vqav2.py",
    "doctor.py", "engine/training/run_tracker.py", "models/cost.py", "engine/evaluation/evaluate.py",
    "evaluation/results.py", "experiments/stages.py",
    "lmms/weights/facts.py", "lmms/weights/trained_layout.py", "refiners/sam_build.py", "utils/whole_files.py",
}  # fmt: skip


@pytest.mark.case("model/nan_prediction")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_named_and_no_file_is_touched(value, tmp_path):
    write_json(tmp_path / "a.json", {"é": [1.5]})
    with pytest.raises(RunError, match=rf"the figure metrics\.rows\[1\]\.AP is {value}"):
        write_json(tmp_path / "a.json", {"metrics": {"rows": [{"AP": 1.0}, {"AP": value}]}})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1.5]}
    with pytest.raises(RunError, match="is nan" if math.isnan(value) else "inf"):
        dump_json(value)


@pytest.mark.case("model/nan_prediction")
def test_every_file_of_figures_goes_through_the_strict_writer():
    root = Path(flmm_detseg.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps"):
                if isinstance(node.value, ast.Name) and node.value.id == "json":
                    found.add(str(file.relative_to(root)))
    assert found <= NO_FIGURES, "use flmm_detseg.utils.whole_files.dump_json"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_file_of_our_own_is_named(content, tmp_path):
    (tmp_path / "done.json").write_bytes(content)
    with pytest.raises(DataError, match=r"done\.json is damaged .*: begin again"):
        read_json(tmp_path / "done.json", "begin again")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_finite_or_not_whatever_their_type(dtype):
    largest = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)
    assert is_finite(largest.t()[1:])
    for value in (math.nan, math.inf, -math.inf):
        broken = largest.clone()
        broken[2, 3] = value
        assert not_finite({"a": largest, "b": broken, "c": broken[:2]}) == ["b"]
    assert is_finite(torch.empty(0, dtype=dtype))
    assert is_finite(torch.tensor([2**60]))


def test_folders_that_cannot_be_synced_are_no_fault_and_full_disks_are(tmp_path, monkeypatch):
    """Folders of CIFS and of some FUSE file systems cannot."""
    whole = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, "sync")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.txt").touch()
    code = errno.EINVAL
    put_in_place(tmp_path / "part", tmp_path / "whole")
    assert (tmp_path / "whole" / "a.txt").exists()
    code = errno.ENOSPC
    with pytest.raises(OSError, match="sync"):
        write_text(tmp_path / "b.txt", "b")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_new_folder_appears_whole_and_a_killed_run_s_rest_is_replaced(tmp_path):
    final = tmp_path / "world"
    left = new_folder(final).__enter__()
    (left / "half").touch()
    del left  # and never ended: the process was killed
    assert not final.exists()
    final.mkdir()
    with new_folder(final) as folder:
        assert not list(folder.iterdir())
        (folder / "whole").touch()
        assert not list(final.iterdir())
    assert [path.name for path in final.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    with pytest.raises(OSError, match="not empty"), new_folder(final):
        pass
    assert (final / "whole").exists()
