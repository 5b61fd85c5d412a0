from __future__ import annotations

import errno
import json
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture
from store_processes import Processes

from flmm_detseg.errors import ConfigError


@pytest.fixture(scope="module")
def processes():
    started = Processes()
    yield started
    started.close()


def served(folder: Path, seeds: range, prefix_key: str | None = None) -> int:
    """Hits of a new process' cache; every one is checked bit by bit."""
    cache = open_cache(folder=folder, disk_prefix=True)
    hits = 0
    for seed in seeds:
        match = cache.match(picture(seed), NAMESPACE, prefix_key=prefix_key)
        if match is not None:
            check(match, picture(seed), prefix_key)
            hits += 1
    assert cache.stats()["errors"] == {"disk": 0}
    cache.close()
    return hits


def files(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir())


def test_entries_outlive_the_process_and_names_need_the_secret(tmp_path):
    cache = open_cache(folder=tmp_path, disk_prefix=True)
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    cache.close()
    again = open_cache(folder=tmp_path)
    match = again.match(picture(0), NAMESPACE, prefix_key="p")
    assert match is not None
    # A stored prefix makes the features unnecessary: they are not read.
    assert check(match, picture(0), "p").prefix
    assert match.served == "L2"
    match = again.match(picture(0), NAMESPACE)
    assert match is not None
    assert check(match, picture(0)).features
    assert (tmp_path / "secret").stat().st_mode & 0o77 == 0
    with pytest.raises(ConfigError, match="another secret"):
        open_cache(folder=tmp_path, secret="x" * 32)


def test_prefixes_are_not_written_by_default(tmp_path):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    assert len(files(tmp_path)) == 1
    match = open_cache(folder=tmp_path).match(picture(0), NAMESPACE, prefix_key="p")
    assert match is not None
    assert match.prefix is None


def test_changed_fingerprint_and_other_tenant_see_nothing_after_restart(tmp_path):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    for other in (replace(NAMESPACE, vision_fp="new"), replace(NAMESPACE, tenant="another")):
        assert open_cache(folder=tmp_path).match(picture(0), other) is None
    assert served(tmp_path, range(1)) == 1


@pytest.mark.e2e
def test_kill_9_during_inserts_never_leaves_a_wrong_entry(tmp_path, processes):
    """Rounds of killed writers on one folder; each new process finds only right entries and no rubbish."""
    code = """
    cache = open_cache(folder=folder, disk_prefix=True)
    log = os.open(folder + "/log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    first = len(os.read(log, 1 << 20))
    for seed in range(first, 10_000):
        insert(cache, picture(seed), mask_of(3), prefix_key="p")
        os.write(log, b".")
        # However slow the machine is, every round stores something.
        open(f"{folder}/entered", "w").close()
    """
    random = np.random.default_rng(0)
    for _ in range(12):
        (tmp_path / "entered").unlink(missing_ok=True)
        processes.start(code, tmp_path, kill_after_s=float(random.uniform(0.0, 0.06)))
        assert processes.wait() == [-signal.SIGKILL]
        stored = (tmp_path / "log").stat().st_size
        # Rows are written before insert returns: all that was reported as stored is there.
        assert served(tmp_path, range(stored + 2), "p") >= stored
        nothing_left_over(tmp_path)
    assert stored >= 5


@pytest.mark.e2e
@pytest.mark.parametrize(
    "moment", ["os.write", "os.fsync", "os.replace", "_sync_folder", "DiskTier._insert_row"]
)
def test_kill_9_at_every_step_of_a_write(tmp_path, processes, moment):
    code = f"""
    from flmm_detseg.store import disk
    cache = open_cache(folder=folder)
    insert(cache, picture(0), mask_of(3))
    disk.{moment} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    insert(cache, picture(1), mask_of(3))
    """
    processes.start(code, tmp_path)
    assert processes.wait() == [-signal.SIGKILL]
    assert len(files(tmp_path)) == 2
    assert served(tmp_path, range(2)) == 1
    nothing_left_over(tmp_path)


def nothing_left_over(folder: Path) -> None:
    """Files and rows are the same."""
    with closing(sqlite3.connect(folder / "index-0.sqlite")) as index:
        names = {name for (name,) in index.execute("SELECT name FROM units")}
    assert {file.name for file in files(folder)} == {f"{name}.safetensors" for name in names}


def test_leftovers_of_a_crash_are_removed_at_start(tmp_path):
    cache = open_cache(folder=tmp_path)
    for seed in range(3):
        insert(cache, picture(seed), mask_of(3))
    cache.close()
    first, second, _ = files(tmp_path)
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    (tmp_path / "entries" / ("0" * 32 + ".safetensors")).write_bytes(b"orphan")
    (tmp_path / "entries" / f"{'1' * 32}.{'2' * 32}.tmp").write_bytes(b"half")
    assert served(tmp_path, range(3)) == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.e2e
def test_two_writing_processes_and_a_reader(tmp_path, processes):
    code = """
    cache = open_cache(folder=folder, disk_bytes=1_000_000, host_bytes=40_000)
    order, hits = np.random.default_rng(number), 0
    for seed in np.concatenate([order.permutation(25) for _ in range(2)]).tolist():
        match = cache.match(picture(seed), NAMESPACE)
        if match is None:
            insert(cache, picture(seed), mask_of(3))
        else:
            check(match, picture(seed))
            hits += 1
    figures = {"hits": hits, "errors": cache.stats()["errors"]["disk"]}
    open(f"{folder}/figures-{number}", "w").write(json.dumps(figures))
    """
    processes.start(code, tmp_path, count=2)
    cache = open_cache(folder=tmp_path)
    deadline, seen = time.monotonic() + 30, set()
    while len(seen) < 25 and time.monotonic() < deadline:
        for seed in range(25):
            match = cache.match(picture(seed), NAMESPACE)
            if match is not None:
                check(match, picture(seed))
                seen.add(seed)
    assert processes.wait() == [0, 0]
    assert len(seen) == 25
    for number in range(2):
        figures = json.loads((tmp_path / f"figures-{number}").read_text())
        assert figures["errors"] == 0
        assert figures["hits"] >= 25
    assert served(tmp_path, range(25)) == 25
    assert len(files(tmp_path)) == 25


@pytest.mark.e2e
def test_only_one_of_several_processes_computes(tmp_path, processes):
    code = """
    cache = open_cache(folder=folder)
    match = cache.match(picture(0), NAMESPACE)
    if match is None:
        with cache.single_flight("picture 0") as flight:
            match = None if flight.leader else cache.match(picture(0), NAMESPACE)
            if match is None:
                open(f"{folder}/computed-{number}", "w").close()
                time.sleep(0.1)
                insert(cache, picture(0), mask_of(3))
    if match is not None:
        check(match, picture(0))
    """
    # A name is computed once, also when processes come late: eight times, since the order is chance.
    for step in range(8):
        folder = tmp_path / str(step)
        folder.mkdir()
        processes.start(code, folder, count=4)
        assert processes.wait() == [0, 0, 0, 0]
        assert len(list(folder.glob("computed-*"))) == 1


@pytest.mark.e2e
def test_lease_of_a_killed_process_runs_out(tmp_path, processes):
    code = """
    cache = open_cache(folder=folder, lease_s=2.0)
    with cache.single_flight("name"):
        open(f"{folder}/entered", "w").close()
        time.sleep(60)
    """
    processes.start(code, tmp_path, kill_after_s=0.1)
    assert processes.wait() == [-signal.SIGKILL]
    assert (tmp_path / "entered").exists()
    cache = open_cache(folder=tmp_path)
    started = time.monotonic()
    with cache.single_flight("name") as flight:
        # There was another one, and it left nothing: match again, find nothing, compute.
        assert not flight.leader
        assert time.monotonic() - started < 10


@pytest.mark.e2e
def test_lease_of_a_living_process_does_not_run_out(tmp_path, processes):
    code = """
    cache = open_cache(folder=folder, lease_s=0.3)
    if cache.match(picture(0), NAMESPACE) is None:
        with cache.single_flight("picture 0") as flight:
            match = None if flight.leader else cache.match(picture(0), NAMESPACE)
            if match is None:
                open(f"{folder}/computed-{number}", "w").close()
                time.sleep(2)
                insert(cache, picture(0), mask_of(3))
    """
    processes.start(code, tmp_path, count=3)
    assert processes.wait() == [0, 0, 0]
    assert len(list(tmp_path.glob("computed-*"))) == 1


@pytest.mark.e2e
def test_writer_killed_with_the_lock_does_not_hold_up_the_others(tmp_path, processes):
    code = """
    from flmm_detseg.store import disk
    cache = open_cache(folder=folder)
    def hang(descriptor):
        open(f"{folder}/entered", "w").close()
        time.sleep(60)
    disk.os.fsync = hang
    insert(cache, picture(0), mask_of(3))
    """
    processes.start(code, tmp_path, kill_after_s=0.5)
    while not (tmp_path / "entered").exists():
        time.sleep(0.005)
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(1), mask_of(3))
    assert processes.wait() == [-signal.SIGKILL]
    assert cache.stats()["errors"] == {"disk": 0}
    cache.close()
    assert served(tmp_path, range(2)) == 1
    nothing_left_over(tmp_path)


def test_flipped_bytes_are_noticed(tmp_path):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    cache.close()
    (file,) = files(tmp_path)
    right = file.read_bytes()
    random = np.random.default_rng(0)
    places = [0, 7, 8, 9, 60, len(right) - 1, *random.integers(0, len(right), 40).tolist()]
    for place in places:
        wrong = bytearray(right)
        wrong[place] ^= 1 << int(random.integers(8))
        cache = open_cache(folder=tmp_path)
        if not files(tmp_path):
            insert(cache, picture(0), mask_of(3))
            cache.close()
            cache = open_cache(folder=tmp_path)
        file.write_bytes(wrong)
        match = cache.match(picture(0), NAMESPACE)
        if match is None:
            assert cache.stats()["dropped"] == {"corrupt": 1}
            assert not file.exists()
        else:
            # White space of the header.
            check(match, picture(0))
        cache.close()


def test_file_under_another_name_is_noticed(tmp_path):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    insert(cache, picture(1), mask_of(3))
    cache.close()
    first, second = files(tmp_path)
    first.write_bytes(second.read_bytes())
    assert served(tmp_path, range(2)) == 1
    assert len(files(tmp_path)) == 1


def no_space(*arguments, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_costs_nothing_but_the_entry(tmp_path, monkeypatch, call):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    with monkeypatch.context() as patch:
        patch.setattr(f"flmm_detseg.store.disk.os.{call}", no_space)
        # Memory still has it.
        assert insert(cache, picture(1), mask_of(3))[0]
    for seed in range(2):
        match = cache.match(picture(seed), NAMESPACE)
        assert match is not None
        check(match, picture(seed))
    assert cache.stats()["errors"] == {"disk": 1}
    assert len(files(tmp_path)) == 1
    cache.close()
    assert served(tmp_path, range(2)) == 1


@pytest.mark.e2e
def test_file_size_limit_in_a_real_process(tmp_path, processes):
    code = """
    cache = open_cache(folder=folder)
    insert(cache, picture(0), mask_of(3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for seed in range(1, 4):
        insert(cache, picture(seed), mask_of(3))
    for seed in range(4):
        check(cache.match(picture(seed), NAMESPACE), picture(seed))
    assert cache.stats()["errors"]["disk"] >= 1
    """
    processes.start(code, tmp_path)
    assert processes.wait() == [0]
    assert served(tmp_path, range(4)) == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.e2e
def test_really_full_file_system(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mount], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        cache = open_cache(folder=mount, disk_bytes=1 << 30)
        for seed in range(60):
            insert(cache, picture(seed), mask_of(3), prefix_key="p")
            match = cache.match(picture(seed), NAMESPACE)
            assert match is not None
            check(match, picture(seed))
        errors = cache.stats()["errors"]["disk"]
        assert errors >= 1
        cache.close()
        kept = served(mount, range(60))
        assert 5 < kept < 60
        assert len(files(mount)) == kept
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_after_a_pause_a_disk_with_room_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr("flmm_detseg.store.disk._PAUSE_S", 0.05)
    cache = open_cache(folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("flmm_detseg.store.disk.os.fsync", no_space)
        insert(cache, picture(0), mask_of(3))
    insert(cache, picture(1), mask_of(3))
    assert len(files(tmp_path)) == 0
    time.sleep(0.06)
    insert(cache, picture(2), mask_of(3))
    assert len(files(tmp_path)) == 1


def test_requests_do_not_wait_for_a_disk_with_write_behind(tmp_path, monkeypatch):
    cache = open_cache(folder=tmp_path, write_behind=2)
    goes_on = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("flmm_detseg.store.disk.os.fsync", lambda descriptor: goes_on.wait(60))
        started = time.monotonic()
        for seed in range(5):
            # One is being written, two wait, the others are in memory only.
            with cache.single_flight(f"picture {seed}") as flight:
                assert flight.leader
                assert insert(cache, picture(seed), mask_of(3))[0]
            match = cache.match(picture(seed), NAMESPACE)
            assert match is not None
            check(match, picture(seed))
            time.sleep(0.05)
        cache.stats()
        assert time.monotonic() - started < 30
        assert cache.stats()["refused"] == {"busy": 2}
        goes_on.set()
        cache.flush()
    assert len(files(tmp_path)) == 3
    insert(cache, picture(9), mask_of(3))
    cache.close()
    assert served(tmp_path, range(10)) == 4


@pytest.mark.parametrize(("eviction", "kept"), [("gdsf", {0, 5}), ("lru", {4, 5})])
def test_disk_budget_follows_the_policy(tmp_path, eviction, kept):
    cache = open_cache(folder=tmp_path, eviction=eviction)
    insert(cache, picture(0), mask_of(3))
    cache.close()
    (file,) = files(tmp_path)
    cache = open_cache(
        folder=tmp_path, eviction=eviction, disk_bytes=int(2.5 * file.stat().st_size), host_bytes=0
    )
    for _ in range(20):
        # Uses are written down with the next write.
        assert cache.match(picture(0), NAMESPACE) is not None
    for seed in range(1, 6):
        insert(cache, picture(seed), mask_of(3))
    found = {seed for seed in range(6) if cache.match(picture(seed), NAMESPACE) is not None}
    assert found == kept
    assert cache.stats()["evicted"]["disk"] == 4


def test_tenants_share_of_the_disk(tmp_path):
    cache = open_cache(folder=tmp_path, tenant_bytes=25_000, host_bytes=0)
    other = replace(NAMESPACE, tenant="another")
    insert(cache, picture(100), mask_of(3), other)
    for seed in range(8):
        insert(cache, picture(seed), mask_of(3))
    assert cache.match(picture(100), other) is not None
    assert 1 <= sum(cache.match(picture(seed), NAMESPACE) is not None for seed in range(8)) <= 4


def test_folder_that_cannot_be_used_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cache folder"):
        open_cache(folder=tmp_path / "file" / "cache")
