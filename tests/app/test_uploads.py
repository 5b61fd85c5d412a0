"""Files of users: what is no picture, too large, or elsewhere gets a sentence, and no file stays."""

from __future__ import annotations

import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.app.frames import frames_of_folder
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.uploads import Uploads
from flmm_detseg.errors import DataError


@pytest.fixture
def uploads():
    made = Uploads(Limits(side=64, pixels=100_000, file_bytes=50_000))
    yield made
    made.close()
    assert not made.folder.exists()


def put(uploads: Uploads, name: str, content: bytes) -> Path:
    folder = uploads.folder / "a1b2"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes(content)
    return file


def picture(uploads: Uploads, name: str, pixels: np.ndarray) -> Path:
    file = put(uploads, name, b"")
    Image.fromarray(pixels).save(file)
    return file


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_a_picture_is_read_reduced_and_gone(uploads):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 100, 3), dtype=np.uint8)
    file = picture(uploads, "scene.png", pixels)
    found = uploads.take(str(file))
    assert (found.name, found.size, found.pixels.shape) == ("scene.png", (40, 100), (26, 64, 3))
    assert not file.exists()
    small = picture(uploads, "small.png", pixels[:, :50])
    np.testing.assert_array_equal(uploads.take(small).pixels, pixels[:, :50])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.png", bomb(30_000, 30_000), "too large"),
        ("large.png", bomb(1000, 1000), "1000 x 1000 pixels"),
        ("text.png", b"hello", "cannot be decoded"),
        ("page.html", b"<script>", "only pictures are taken"),
        ("drawing.svg", b"<svg/>", "only pictures are taken"),
        ("none", b"", "only pictures are taken"),
        ("heavy.png", b"\x89PNG" + b"0" * 60_000, "at most 0 MB"),
    ],
)
def test_what_is_no_picture_gets_a_sentence_without_a_path(uploads, name, content, words):
    file = put(uploads, name, content)
    with pytest.raises(DataError, match=words) as raised:
        uploads.take(str(file))
    assert str(uploads.folder) not in str(raised.value)
    assert name in str(raised.value)
    assert not file.exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "{folder}/../other.png", "{folder}", "", None, 7, ["a.png"]])
def test_nothing_outside_of_the_folder_is_read_or_deleted(uploads, path):
    other = uploads.folder.parent / "other.png"
    Image.new("RGB", (4, 4)).save(other)
    try:
        given = path.format(folder=uploads.folder) if isinstance(path, str) else path
        with pytest.raises(DataError, match="choose a picture"):
            uploads.take(given)
        assert other.exists()
        assert Path("/etc/passwd").exists()
    finally:
        other.unlink()


def test_what_waits_unread_has_a_limit_of_bytes(tmp_path):
    uploads = Uploads(Limits(file_bytes=100, folder_bytes=250))
    try:
        files = [put(uploads, f"{index}.png", b"0" * 100) for index in range(4)]
        now = files[0].stat().st_mtime
        for index, file in enumerate(files):
            os.utime(file, (now, now + index))
        assert uploads.sweep(older_than=1000) == 2
        assert [file.exists() for file in files] == [False, False, True, True]
    finally:
        uploads.close()


def test_a_link_out_of_the_folder_is_not_followed(uploads, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    link = uploads.folder / "link.png"
    link.symlink_to(secret)
    with pytest.raises(DataError, match="no file that was sent here"):
        uploads.take(link)


def test_files_that_nobody_asks_to_read_are_swept(uploads):
    old, new = put(uploads, "old.png", b"1"), put(uploads, "new.png", b"1")
    long_ago = time.time() - 1000
    os.utime(old, (long_ago, long_ago))
    assert uploads.sweep() == 1
    assert not old.exists()
    assert new.exists()


def test_frames_of_a_folder_are_its_pictures_and_nothing_else(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG") if name != "notes.txt" else (
            tmp_path / name
        ).touch()
    (tmp_path / "deep.png").mkdir()
    frames = frames_of_folder(tmp_path, Limits())
    assert frames.names == ["a.jpg", "b.png"]
    assert frames.picture("b.png").size == (8, 8)
    for name in ("../b.png", "notes.txt", "/etc/passwd", str(tmp_path / "b.png"), None, 3):
        with pytest.raises(DataError, match="there is no frame"):
            frames.picture(name)
    with pytest.raises(DataError, match="holds no picture"):
        frames_of_folder(tmp_path / "deep.png", Limits())


def test_a_folder_that_another_thread_deletes_while_it_is_looked_at_stops_nothing(uploads, monkeypatch):
    for name in ("a", "b", "c"):
        put(uploads, f"{name}.png", b"old")
    other = uploads.folder / "gone"
    other.mkdir()
    (other / "x.png").write_bytes(b"old")
    kept = uploads.folder / "z"
    kept.mkdir()
    (kept / "new.png").write_bytes(b"new")
    scandir, deleted = os.scandir, []

    def meanwhile(path):
        if str(path) == str(other) and other.exists():
            shutil.rmtree(other)
            deleted.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", meanwhile)
    later = time.time() + 60
    os.utime(kept / "new.png", (later, later))
    assert uploads.sweep(older_than=-1) == 3
    assert deleted
    assert [file.name for file in uploads.folder.rglob("*.png")] == ["new.png"]
