"""What was cleared, evicted or has expired is gone: from what waits, from other processes and from the index."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture
from store_processes import Processes

OTHER = replace(NAMESPACE, tenant="another")


@pytest.fixture(scope="module")
def processes():
    started = Processes()
    yield started
    started.close()


def files(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_to_be_written_is_cleared_as_well(tmp_path, monkeypatch):
    cache = open_cache(folder=tmp_path, write_behind=8)
    writes, goes_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        writes.set()
        goes_on.wait(20)
        time.sleep(0.1)

    with monkeypatch.context() as patch:
        patch.setattr("flmm_detseg.store.disk.os.fsync", slow)
        for seed in range(5):
            insert(cache, picture(seed), mask_of(3))
        insert(cache, picture(9), mask_of(3), OTHER)
        assert writes.wait(20)
        cleared = threading.Thread(target=cache.clear, args=(NAMESPACE,))
        cleared.start()
        time.sleep(0.2)
        goes_on.set()
        cleared.join()
        cache.flush()
    # The one that was being written is gone, too; another tenant's is not.
    assert len(files(tmp_path)) == 1
    for seed in range(5):
        assert cache.match(picture(seed), NAMESPACE) is None
    cache.close()
    again = open_cache(folder=tmp_path)
    assert again.match(picture(0), NAMESPACE) is None
    assert again.match(picture(9), OTHER) is not None


def test_what_comes_after_clearing_is_kept(tmp_path):
    cache = open_cache(folder=tmp_path)
    for _ in range(3):
        insert(cache, picture(0), mask_of(3))
        cache.clear(NAMESPACE)
        assert cache.match(picture(0), NAMESPACE) is None
        insert(cache, picture(0), mask_of(3))
        for _ in range(2):
            match = cache.match(picture(0), NAMESPACE)
            assert match is not None
            check(match, picture(0))
    cache.close()
    # A later process knows nothing of all that.
    assert open_cache(folder=tmp_path).match(picture(0), NAMESPACE) is not None


@pytest.mark.e2e
@pytest.mark.parametrize("everything", [False, True])
def test_memory_of_other_processes_is_cleared(tmp_path, processes, everything):
    code = """
    from dataclasses import replace
    cache = open_cache(folder=folder)
    other = replace(NAMESPACE, tenant="another")
    insert(cache, picture(0), mask_of(3))
    insert(cache, picture(1), mask_of(3), other)
    assert cache.match(picture(0), NAMESPACE) is not None
    open(f"{folder}/entered", "w").close()
    while not os.path.exists(f"{folder}/cleared"):
        time.sleep(0.005)
    assert cache.match(picture(0), NAMESPACE) is None
    assert (cache.match(picture(1), other) is None) == os.path.exists(f"{folder}/../everything")
    insert(cache, picture(0), mask_of(3))
    check(cache.match(picture(0), NAMESPACE), picture(0))
    """
    if everything:
        (tmp_path / "everything").touch()
    folder = tmp_path / "cache"
    processes.start(code, folder)
    wait_for(folder / "entered")
    cache = open_cache(folder=folder)
    assert cache.match(picture(0), NAMESPACE) is not None
    cache.clear(None if everything else NAMESPACE)
    (folder / "cleared").touch()
    assert processes.wait() == [0]
    assert cache.match(picture(0), NAMESPACE) is not None


@pytest.mark.e2e
def test_what_waits_in_other_processes_is_cleared(tmp_path, processes):
    code = """
    from flmm_detseg.store import disk
    cache = open_cache(folder=folder, write_behind=8)
    put, first = disk.DiskTier.put, []
    def slow(*arguments):
        if not first:
            first.append(1)
            open(f"{folder}/entered", "w").close()
            while not os.path.exists(f"{folder}/cleared"):
                time.sleep(0.005)
        return put(*arguments)
    disk.DiskTier.put = slow
    for seed in range(5):
        insert(cache, picture(seed), mask_of(3))
    cache.flush()
    assert cache.match(picture(0), NAMESPACE) is None
    """
    processes.start(code, tmp_path)
    wait_for(tmp_path / "entered")
    cache = open_cache(folder=tmp_path)
    cache.clear(NAMESPACE)
    (tmp_path / "cleared").touch()
    assert processes.wait() == [0]
    assert files(tmp_path) == []


def test_evicted_backgrounds_leave_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr("flmm_detseg.store.disk_index._SWEEP_S", 0.0)
    cache = open_cache(folder=tmp_path, disk_bytes=60_000, host_bytes=20_000)
    for seed in range(40):
        insert(cache, picture(seed), mask_of(3))
    cache.match(picture(99), NAMESPACE)
    stats = cache.stats()
    stored = len(files(tmp_path)) + stats["values"]["host"]
    assert 5 < stats["backgrounds"] <= stored < 15
    # What is there is still found.
    found = [seed for seed in range(40) if cache.match(picture(seed), NAMESPACE) is not None]
    assert len(found) >= len(files(tmp_path))


@pytest.mark.e2e
def test_what_other_processes_evict_leaves_the_index(tmp_path, processes, monkeypatch):
    monkeypatch.setattr("flmm_detseg.store.disk_index._SWEEP_S", 0.0)
    cache = open_cache(folder=tmp_path, disk_bytes=60_000, host_bytes=0)
    for seed in range(5):
        insert(cache, picture(seed), mask_of(3))
    cache.match(picture(0), NAMESPACE)
    assert cache.stats()["backgrounds"] == 5
    code = """
    cache = open_cache(folder=folder, disk_bytes=60_000)
    for seed in range(10, 40):
        insert(cache, picture(seed), mask_of(3))
    """
    processes.start(code, tmp_path)
    assert processes.wait() == [0]
    cache.match(picture(99), NAMESPACE)
    assert cache.stats()["backgrounds"] == len(files(tmp_path)) < 12


def test_index_is_bounded(tmp_path):
    cache = open_cache(folder=tmp_path, index_records=7, host_bytes=16_000)
    for seed in range(30):
        insert(cache, picture(seed), mask_of(3))
    in_memory = cache.stats()["values"]["host"]
    assert cache.stats()["backgrounds"] <= 7
    assert 2 <= in_memory <= 3
    # The last ones are known: in memory, or on disk.
    for seed in range(24, 30):
        match = cache.match(picture(seed), NAMESPACE)
        assert match is not None
        check(match, picture(seed))
