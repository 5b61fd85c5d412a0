"""Streams as files: what is drawn is what is read, the same bytes again, nothing half done is taken for done."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.tinyworld import stream_files
from flmm_detseg.datasets.tinyworld.stream_files import MANIFEST, StreamSpec, write_streams
from flmm_detseg.datasets.tinyworld.streams import make_stream
from flmm_detseg.errors import ConfigError

SPEC = StreamSpec(train_streams=2, val_streams=3, num_frames=5, num_questions=3, seed=4)
TOOL = Path(__file__).parents[2] / "tools" / "make_streams.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("streams") / "files"
    assert write_streams(out, SPEC, progress=False)["written"]
    return out


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def read(folder: Path, split: str = "val") -> QuestionDataset:
    return QuestionDataset(file=str(folder / f"{split}.jsonl"), image_dir=str(folder))


def test_what_is_read_is_what_was_drawn(folder):
    drawn = {
        item.stream: make_stream(kind, 4, index, 5, split="val")
        for kind in stream_files.STREAM_FILE_KINDS
        for index in range(3)
        for item in make_stream(kind, 4, index, 5, split="val")[:1]
    }
    samples = list(map(read(folder).__getitem__, range(len(read(folder)))))
    assert {sample.meta["session"] for sample in samples} == set(drawn)
    for sample in samples:
        frame = int(Path(sample.image_id).stem)
        item = drawn[sample.meta["session"]][frame]
        assert np.array_equal(sample.image, item.image)
        assert sample.meta["objects_xyxy"] == [list(box) for box in item.objects_xyxy]
        answers = {(text, answer): group for text, answer, group in item.questions}
        group = answers[sample.prompt, sample.text]
        assert sample.meta["kind"] in (group, "clock", "score")


def test_every_category_and_no_question_twice_about_a_frame(folder):
    for split in ("train", "val"):
        samples = [read(folder, split)[index] for index in range(len(read(folder, split)))]
        kinds = Counter(sample.meta["kind"] for sample in samples)
        assert set(kinds) == {"objects", "background", "cross", "clock", "score"}
        about = Counter((sample.image_id, sample.prompt) for sample in samples)
        assert set(about.values()) == {1}
        frames = Counter(sample.image_id for sample in samples)
        assert max(frames.values()) == {"train": SPEC.train_questions, "val": SPEC.num_questions}[split]
        screens = [sample for sample in samples if sample.meta["session"].startswith("screen")]
        texts = Counter(sample.image_id for sample in screens if sample.meta["kind"] in ("clock", "score"))
        assert set(texts.values()) == {2}
        assert set(texts) == {sample.image_id for sample in screens}


def test_the_same_bytes_again_and_nothing_to_do(folder, tmp_path):
    write_streams(tmp_path / "again", SPEC, progress=False)
    assert digest(tmp_path / "again") == digest(folder)
    before = digest(folder)
    assert not write_streams(folder, SPEC, progress=False)["written"]
    assert digest(folder) == before


def test_other_contents_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="other streams"):
        write_streams(folder, StreamSpec(seed=5), progress=False)
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=f"no {MANIFEST}"):
        write_streams(tmp_path, SPEC, progress=False)
    with pytest.raises(ConfigError, match="val_streams, num_frames must be at least 1"):
        StreamSpec(val_streams=0, num_frames=0)


def test_tool(tmp_path):
    command = [
        sys.executable,
        str(TOOL),
        "--out",
        str(tmp_path / "s"),
        "--train-streams",
        "1",
        "--val-streams",
        "1",
    ]
    result = subprocess.run([*command, "--frames", "2"], capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    assert figures["written"]
    assert (figures["train"]["frames"], figures["val"]["frames"]) == (6, 6)
    result = subprocess.run([*command, "--frames", "3"], capture_output=True, text=True)
    assert result.returncode
    assert "other streams" in result.stderr
