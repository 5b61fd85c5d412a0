"""What a tier that fails must not do: lose a clear, end a request, keep what somebody wrote to, hang."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import struct
import threading
from pathlib import Path

import pytest
import torch
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.store import disk, tiers
from flmm_detseg.store.disk_index import IndexReader
from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.serialise import decode
from flmm_detseg.store.write_behind import WriteBehind


def files(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir())


def test_a_clear_that_the_disk_does_not_do_is_reported(tmp_path, monkeypatch):
    cache, other = open_cache(folder=tmp_path), open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    assert other.match(picture(0), NAMESPACE) is not None
    monkeypatch.setattr(disk, "_LOCK_WAIT_S", 0.05)
    with (tmp_path / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="not in disk.*clear again"):
            cache.clear(NAMESPACE)
    assert len(files(tmp_path)) == 1
    cache.clear(NAMESPACE)
    assert files(tmp_path) == []
    assert [one.match(picture(0), NAMESPACE) for one in (cache, other)] == [None, None]


def test_who_looks_in_the_middle_of_a_clear_keeps_nothing(tmp_path, monkeypatch):
    cache, other = open_cache(folder=tmp_path), open_cache(folder=tmp_path)
    for seed in range(2):
        insert(cache, picture(seed), mask_of(3))
    remove, found = disk.DiskTier._remove, []

    def looked_at(self, index, name):
        if not found:
            # The message is out, the rows are still there: this one has not read them yet.
            found.append([other.match(picture(seed), NAMESPACE) for seed in range(2)])
        remove(self, index, name)

    monkeypatch.setattr(disk.DiskTier, "_remove", looked_at)
    cache.clear(NAMESPACE)
    assert any(found[0])
    assert [other.match(picture(seed), NAMESPACE) for seed in range(2)] == [None, None]


def test_a_clear_is_read_again_when_its_reading_failed(tmp_path, monkeypatch):
    cache, other = open_cache(folder=tmp_path), open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    assert other.match(picture(0), NAMESPACE) is not None
    cache.clear(NAMESPACE)
    read, failures = IndexReader._read_rows, [sqlite3.OperationalError("disk I/O error")]

    def fails_once(self, news):
        if failures:
            raise failures.pop()
        read(self, news)

    monkeypatch.setattr(IndexReader, "_read_rows", fails_once)
    other.match(picture(1), NAMESPACE)
    assert not failures
    assert other.match(picture(0), NAMESPACE) is None


def test_a_tensor_that_somebody_wrote_to_does_not_reach_the_disk(tmp_path, monkeypatch):
    cache = open_cache(folder=tmp_path, write_behind=2)
    begins, goes_on = threading.Event(), threading.Event()
    write = disk.os.fsync

    def slow(descriptor: int) -> None:
        begins.set()
        goes_on.wait(60)
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("flmm_detseg.store.disk.os.fsync", slow)
        insert(cache, picture(0), mask_of(3))
        assert begins.wait(60)
        # This one waits after it.
        insert(cache, picture(1), mask_of(3))
        match = cache.match(picture(1), NAMESPACE)
        assert match is not None
        assert match.features is not None
        match.features.zero_()
        goes_on.set()
        cache.flush()
    assert cache.stats()["dropped"] == {"written": 1}
    assert len(files(tmp_path)) == 1
    cache.close()
    assert open_cache(folder=tmp_path).match(picture(1), NAMESPACE) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_does_not_end_the_request(tmp_path, monkeypatch, error):
    cache = open_cache(folder=tmp_path)

    def full(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tiers, "copy_value", full)
        # The disk has it all the same, and hits come from there.
        assert insert(cache, picture(0), mask_of(3))[0]
        match = cache.match(picture(0), NAMESPACE)
        assert match is not None
        check(match, picture(0))
        assert cache.stats()["refused"]["memory"] >= 1
        assert not insert(open_cache(), picture(0), mask_of(3))[0]


def test_a_value_that_cannot_be_read_now_is_not_forgotten(tmp_path, monkeypatch):
    insert(open_cache(folder=tmp_path), picture(0), mask_of(3))
    cache = open_cache(folder=tmp_path)
    with monkeypatch.context() as patch:

        def fails(self):
            raise OSError("too many open files")

        patch.setattr(Path, "read_bytes", fails)
        assert cache.match(picture(0), NAMESPACE) is None
    match = cache.match(picture(0), NAMESPACE)
    assert match is not None
    check(match, picture(0))


def test_closing_twice_and_storing_afterwards(tmp_path):
    cache = open_cache(folder=tmp_path, write_behind=2)
    insert(cache, picture(0), mask_of(3))
    cache.close()

    def afterwards() -> None:
        cache.close()
        insert(cache, picture(1), mask_of(3))
        cache.flush()

    thread = threading.Thread(target=afterwards, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(files(tmp_path)) == 1


def test_everything_that_was_taken_is_written_before_the_end():
    written: list[int] = []
    failed: list[None] = []

    def write(item: int) -> None:
        if item == 1:
            raise ValueError("a mistake of ours")
        written.append(item)

    writer = WriteBehind(100, write, lambda: failed.append(None))
    taken: list[int] = []

    def put(start: int) -> None:
        taken.extend(item for item in range(start, start + 20) if writer.put(item))

    threads = [threading.Thread(target=put, args=(20 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    writer.close()
    for thread in threads:
        thread.join()
    assert not writer.put(1000)
    assert sorted(written) == sorted(set(taken) - {1})
    assert len(failed) == (1 in taken)


def test_a_deep_header_is_damage_and_nothing_else():
    header = ('{"__metadata__":' + "[" * 100_000).encode()
    with pytest.raises(DataError, match="cannot be read"):
        decode(KeyMaker(b"k" * 32), struct.pack("<Q", len(header)) + header)


def test_counters_are_written_to_the_last_digit():
    cache = open_cache()
    cache._stats.add("saved_ms", "L2", 1234567.125)
    cache._stats.add("saved_ms", "L1", 2.0)
    text = cache.prometheus()
    assert 'flmm_cache_saved_ms_total{level="L2"} 1234567.125\n' in text
    assert 'flmm_cache_saved_ms_total{level="L1"} 2\n' in text
    assert json.loads("1234567.125") == cache.stats()["saved_ms"]["L2"]
