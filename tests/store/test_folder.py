"""Cache folders: what is a user's stays as it is, and nothing is served from where others may write."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture

from flmm_detseg.errors import ConfigError
from flmm_detseg.store import disk, folder

SECRETS = dict(first="first secret 1234567", other="other secret 9876543")


def tree(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Mode and content of everything."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted([root, *root.rglob("*")])
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def filled(path: Path, **settings) -> Path:
    """A cache folder with two values."""
    cache = open_cache(folder=path, **settings)
    for seed in range(2):
        insert(cache, picture(seed), mask_of(3))
    cache.close()
    return path


def of_earlier_version(path: Path) -> Path:
    """As it was before folders had a marker."""
    (path / "CACHEDIR.TAG").unlink()
    path.chmod(0o755)
    for name in ("lock", "index-0.sqlite"):
        (path / name).chmod(0o644)
    return path


def served(path: Path, **settings) -> int:
    cache = open_cache(folder=path, **settings)
    found = [cache.match(picture(seed), NAMESPACE) for seed in range(2)]
    for seed, match in enumerate(found):
        if match is not None:
            check(match, picture(seed))
    assert cache.stats()["errors"] == {"disk": 0}
    cache.close()
    return sum(match is not None for match in found)


USERS = {
    "entries": lambda path: [
        (path / "entries").mkdir(),
        (path / "entries" / "thesis.txt").write_text("precious"),
    ],
    "other files": lambda path: [(path / "photo.png").write_bytes(b"precious")],
    "a secret": lambda path: [(path / "secret").write_text("my password")],
    "a database": lambda path: [database(path / "index-0.sqlite")],
    "a backup's mark": lambda path: [(path / "CACHEDIR.TAG").write_text("Signature: another program's")],
    "folder under a name": lambda path: [(path / "secret").mkdir()],
    "link to entries": lambda path: [(path / "entries").symlink_to(path.parent / "victim")],
    "link to a database": lambda path: [
        (path / "index-0.sqlite").symlink_to(path.parent / "victim" / "data")
    ],
    "link to a secret": lambda path: [(path / "secret").symlink_to(path.parent / "victim" / "keep.txt")],
    "dangling lock": lambda path: [(path / "lock").symlink_to(path.parent / "nothing")],
    "pipe": lambda path: [os.mkfifo(path / "secret")],
}


def database(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as mine:
        mine.execute("CREATE TABLE units (precious)")


@pytest.mark.case("security/cache_folder")
@pytest.mark.parametrize("own_secret", [False, True])
@pytest.mark.parametrize("put", USERS.values(), ids=USERS)
def test_a_folder_with_a_users_files_is_refused_and_left_as_it_is(tmp_path, put, own_secret):
    mine, victim = tmp_path / "mine", tmp_path / "victim"
    for path in (mine, victim):
        path.mkdir(mode=0o755)
    (victim / "keep.txt").write_text("precious")
    database(victim / "data")
    put(mine)
    before = tree(tmp_path)
    settings = {} if own_secret else {"secret": SECRETS["first"]}
    with pytest.raises(ConfigError, match=r"(?s)cache folder .*folder"):
        open_cache(folder=mine, **settings)
    after = tree(tmp_path)
    # SQLite keeps no log beside a database that it only read.
    assert after == before


@pytest.mark.case("security/cache_folder")
def test_only_what_the_cache_wrote_is_cleaned(tmp_path):
    path = filled(tmp_path / "cache")
    entries = path / "entries"
    (entries / "thesis.txt").write_text("precious")
    (entries / "x.safetensors").write_text("precious")
    (entries / "half.tmp").write_text("precious")
    (entries / f"{'a' * 32}.safetensors").mkdir()
    (tmp_path / "victim").write_text("precious")
    (entries / f"{'b' * 32}.safetensors").symlink_to(tmp_path / "victim")
    (entries / f"{'c' * 32}.safetensors").write_text("orphan")
    (entries / f"{'c' * 32}.{'d' * 32}.tmp").write_text("orphan")
    before = set(tree(path))
    for _ in range(2):
        assert served(path) == 2
    gone = {name for name in before - set(tree(path)) if not name.startswith("index")}
    assert gone == {f"entries/{'c' * 32}.safetensors", f"entries/{'c' * 32}.{'d' * 32}.tmp"}
    # The index of an earlier version names the folder as well.
    assert served(of_earlier_version(path)) == 2
    assert (entries / "thesis.txt").exists()


@pytest.mark.case("security/cache_folder")
@pytest.mark.parametrize("existed", [False, True])
def test_only_the_owner_may_look_in(tmp_path, existed):
    path = tmp_path / "cache"
    if existed:
        path.mkdir()
        path.chmod(0o777)
    before = os.umask(0o022)
    try:
        filled(path)
        cache = open_cache(folder=path)
        found = {name for name in os.listdir(path)}
        assert {"index-0.sqlite", "index-0.sqlite-wal", "lock", "secret", "entries", "CACHEDIR.TAG"} <= found
        assert mode(path) == mode(path / "entries") == 0o700
        assert {name: mode(path / name) for name in found - {"entries"}} == dict.fromkeys(
            found - {"entries"}, 0o600
        )
        cache.close()
        of_earlier_version(path)
        (path / "secret").chmod(0o644)
        assert served(path) == 2
        assert (mode(path), mode(path / "secret"), mode(path / "index-0.sqlite")) == (0o700, 0o600, 0o600)
    finally:
        os.umask(before)


@pytest.mark.case("security/cache_folder")
@pytest.mark.parametrize("place", ["", "secret", "entries"])
@pytest.mark.parametrize("bits", [0o002, 0o020])
def test_what_others_may_write_is_refused(tmp_path, place, bits):
    path = filled(tmp_path / "cache")
    (path / place).chmod(mode(path / place) | bits)
    before = tree(path)
    with pytest.raises(ConfigError, match="written by other users .*chmod"):
        open_cache(folder=path)
    assert tree(path) == before
    (path / place).chmod(mode(path / place) & ~bits)
    assert served(path) == 2


@pytest.mark.case("security/cache_folder")
@pytest.mark.parametrize("place", ["", "secret", "entries", "lock", "index-0.sqlite"])
def test_what_another_user_owns_is_refused(tmp_path, monkeypatch, place):
    path = filled(tmp_path / "cache")
    wrong = path / place
    if os.geteuid() == 0:
        os.chown(wrong, 65534, 65534)
    else:
        lstat, stat_ = os.lstat, os.stat
        for name, real in (("lstat", lstat), ("stat", stat_)):
            monkeypatch.setattr(folder.os, name, lambda p, real=real: other_owner(real(p), Path(p) == wrong))
    before = tree(path)
    with pytest.raises(ConfigError, match=r"belongs to user \d+.*chown"):
        open_cache(folder=path)
    assert tree(path) == before


def other_owner(found: os.stat_result, other: bool) -> os.stat_result:
    return os.stat_result((*found[:4], found.st_uid + other, *found[5:]))


@pytest.mark.case("security/cache_folder")
def test_folders_that_no_cache_can_use_give_a_sentence(tmp_path, monkeypatch):
    for name, make in (
        ("file", Path.touch),
        ("dangling", lambda path: path.symlink_to(tmp_path / "n" / "o")),
    ):
        make(tmp_path / name)
        with pytest.raises(ConfigError, match="cannot be used"):
            open_cache(folder=tmp_path / name)
    # A crash between making the secret's name and its content (or a disk that lost it).
    path = tmp_path / "empty"
    path.mkdir()
    (path / "secret").touch()
    assert served(filled(path)) == 2
    (path / "secret").unlink()
    with pytest.raises(ConfigError, match="missing or damaged"):
        open_cache(folder=path)
    assert len(list((path / "entries").iterdir())) == 2
    # A link as the folder itself is the user's own way of saying where it lies.
    filled(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert served(tmp_path / "link") == 2
    # A file system's own folder.
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    assert served(filled(tmp_path / "disk")) == 2


def mounted(path: Path, options: str) -> None:
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")


@pytest.mark.case("security/cache_folder")
def test_full_and_read_only_file_systems_give_a_sentence(tmp_path):
    mount = tmp_path / "small"
    mounted(mount, "size=256k,mode=0700")
    try:
        room = os.statvfs(mount)
        (mount / "lock").write_bytes(bytes(room.f_bavail * room.f_frsize))
        with pytest.raises(ConfigError, match=r"cannot be used .*No space left.*writable folder"):
            open_cache(folder=mount)
        (mount / "lock").unlink()
        filled(mount)
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        with pytest.raises(ConfigError, match=r"cannot be used .*Read-only file system.*writable folder"):
            open_cache(folder=mount)
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.case("security/cache_shared")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_program_with_another_secret_is_refused(tmp_path, caplog, earlier):
    path = filled(tmp_path / "cache", secret=SECRETS["first"])
    if earlier:
        of_earlier_version(path)
    before = {name: content for name, (_, content) in tree(path).items() if name.startswith("entries")}
    for settings, message in (
        ({"secret": SECRETS["other"]}, "another secret.*left as it is"),
        ({}, "secret"),
    ):
        with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match=message):
            open_cache(folder=path, **settings)
    assert {name: tree(path)[name][1] for name in before} == before
    assert not caplog.records
    assert served(path, secret=SECRETS["first"]) == 2


def test_a_folder_that_another_program_marks_meanwhile_is_a_cache(tmp_path, monkeypatch):
    path, look = tmp_path / "cache", folder._foreign

    def late(found):
        # Between the two looks of the second program, the first one writes its marker.
        monkeypatch.setattr(folder, "_foreign", look)
        open_cache(folder=path).close()
        return look(found) or folder._MARKER

    monkeypatch.setattr(folder, "_foreign", late)
    open_cache(folder=path).close()
    assert (path / folder._MARKER).exists()


@pytest.mark.case("security/cache_shared")
def test_of_two_programs_that_come_at_once_one_secret_wins(tmp_path, monkeypatch):
    path, settle, others = tmp_path / "cache", folder._settle, []

    def late(draft: Path, name: Path) -> None:
        if name.name == "CACHEDIR.TAG" and not others:
            others.append(None)
            others.append(open_cache(folder=path, secret=SECRETS["first"]))
        settle(draft, name)

    monkeypatch.setattr(folder, "_settle", late)
    with pytest.raises(ConfigError, match="another secret"):
        open_cache(folder=path, secret=SECRETS["other"])
    insert(others[1], picture(0), mask_of(3))
    others[1].close()
    assert served(path, secret=SECRETS["first"]) == 1


class Clock:
    """The wall clock, set to another time."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def __getattr__(self, name: str):
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self.ahead_s


@pytest.mark.case("security/cache_shared")
@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_lease_outlives_its_holder_by_its_own_length_at_most(tmp_path, monkeypatch, ahead_s):
    clock = Clock(ahead_s)
    monkeypatch.setattr(disk, "time", clock)
    first, second = (open_cache(folder=tmp_path)._tiers.remote["disk"] for _ in range(2))
    assert first.acquire("x", 0.3)
    clock.ahead_s = 0.0
    # Not given back by a clock that was set, neither.
    assert not second.acquire("x", 0.3)
    time.sleep(0.31)
    assert second.acquire("x", 30.0)
    second.release("x")
    # Of a process that ran before the machine was started again; of an earlier version.
    for owner, expires in ((f"an earlier boot/{first._owner}", 1e9), ("123-abc", time.time() + 1e6)):
        first._requests.execute("INSERT OR REPLACE INTO leases VALUES ('x', ?, ?)", (owner, expires))
        assert second.acquire("x", 30.0)
        assert not first.acquire("x", 30.0)
        second.release("x")


@pytest.mark.case("security/cache_shared")
def test_the_clock_does_not_say_who_was_used_last(tmp_path, monkeypatch):
    """LRU, with a clock that goes back before every use."""
    clock = Clock(0.0)
    monkeypatch.setattr(disk, "time", clock)
    size = (filled(tmp_path / "size") / "entries").iterdir().__next__().stat().st_size
    cache = open_cache(folder=tmp_path / "cache", eviction="lru", disk_bytes=int(2.5 * size), host_bytes=0)
    for seed in range(6):
        clock.ahead_s -= 3600.0
        insert(cache, picture(seed), mask_of(3))
        if seed == 3:
            assert cache.match(picture(2), NAMESPACE) is not None
            with cache._tiers.remote["disk"]._exclusive():
                cache._tiers.remote["disk"]._flush_uses()
            insert(cache, picture(9), mask_of(3))
            # 2 was used after 3 came.
            found = {number for number in (2, 3, 9) if cache.match(picture(number), NAMESPACE) is not None}
            assert found == {2, 9}
    found = {seed for seed in range(6) if cache.match(picture(seed), NAMESPACE) is not None}
    assert found == {4, 5}


@pytest.mark.case("security/cache_folder")
def test_a_shared_marker_is_that_of_backup_programs(tmp_path):
    path = filled(tmp_path / "cache")
    assert (path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    tar = shutil.which("tar")
    if tar is None or sys.platform != "linux":
        pytest.skip("no GNU tar")
    listing = subprocess.run(
        [tar, "-C", tmp_path, "--exclude-caches", "-cf", "-", "cache"], capture_output=True, check=True
    )
    assert b"entries" not in listing.stdout
