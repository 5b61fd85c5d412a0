"""Indexes that are damaged, forged or of another version: never a wrong background, and never one that is lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture

from flmm_detseg.store import disk


def files(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir())


@contextmanager
def rows_of(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "index-0.sqlite", isolation_level=None)) as rows:
        rows.text_factory = bytes
        yield rows


def served(folder: Path, seeds: range) -> int:
    """Hits of a new process' cache; every one is checked bit by bit."""
    cache = open_cache(folder=folder)
    hits = 0
    for seed in seeds:
        match = cache.match(picture(seed), NAMESPACE)
        if match is not None:
            check(match, picture(seed))
            hits += 1
    assert cache.stats()["errors"] == {"disk": 0}
    cache.close()
    return hits


def wallpaper() -> np.ndarray:
    """Equal tiles but for one: a wrong mask does not show in the pixels."""
    tiles = np.full((64, 48), 200, np.uint8)
    tiles[3] = picture(0)[3]
    return tiles


def flip(folder: Path, column: str, bit: int) -> None:
    """Flips a bit of the only row's column; the value stays as long as it is."""
    with rows_of(folder) as rows:
        ((value,),) = rows.execute(f"SELECT {column} FROM units").fetchall()
        if isinstance(value, int):
            rows.execute(f"UPDATE units SET {column} = ?", (value ^ 1 << bit % 4,))
            return
        wrong = bytearray(value)
        place = bit % (8 * len(wrong))
        wrong[place // 8] ^= 1 << place % 8
        kind = "BLOB" if column in ("mask", "voters") else "TEXT"
        rows.execute(f"UPDATE units SET {column} = CAST(? AS {kind})", (bytes(wrong),))


@pytest.mark.parametrize(
    "column",
    ["name", "scope", "bucket", "entry", "rows", "cols", "mask", "voters", "digest", "signature", "level", "tenant",
     "bytes", "freq"],
)  # fmt: skip
def test_flipped_bits_in_a_row_neither_change_nor_lose_a_background(tmp_path, column):
    tiles = wallpaper()
    for bit in (3, 7, 26):
        folder = tmp_path / str(bit)
        cache = open_cache(folder=folder)
        insert(cache, tiles, mask_of(3), session="s")
        cache.close()
        flip(folder, column, bit)
        cache = open_cache(folder=folder)
        for step in range(2):
            match = cache.match(tiles, NAMESPACE, session="s")
            if match is None:
                assert step == 0
                assert insert(cache, tiles, mask_of(3), session="s")[0]
                match = cache.match(tiles, NAMESPACE, session="s")
            assert match is not None
            assert np.array_equal(match.key.mask, mask_of(3))
            check(match, tiles)
        assert cache.stats()["errors"] == {"disk": 0}
        cache.close()
        again = open_cache(folder=folder)
        match = again.match(tiles, NAMESPACE, session="s")
        assert match is not None
        assert np.array_equal(match.key.mask, mask_of(3))
        again.close()


def test_a_bit_flipped_in_a_mask_never_serves_features_of_other_tiles(tmp_path):
    """0b11110111 becomes 0b11101111: the wallpaper's pixels are the same under both masks."""
    tiles = wallpaper()
    cache = open_cache(folder=tmp_path)
    insert(cache, tiles, mask_of(4), session="s")
    cache.close()
    with rows_of(tmp_path) as rows:
        ((mask,),) = rows.execute("SELECT mask FROM units").fetchall()
        assert mask[0] == 0b11110111
        rows.execute("UPDATE units SET mask = ?", (bytes([0b11101111]) + mask[1:],))
    cache = open_cache(folder=tmp_path)
    assert cache.match(tiles, NAMESPACE, session="s") is None
    insert(cache, tiles, mask_of(4), session="s")
    match = cache.match(tiles, NAMESPACE, session="s")
    assert match is not None
    assert np.array_equal(match.key.mask, mask_of(4))


def test_record_that_is_not_the_images_own_is_replaced(tmp_path, monkeypatch):
    """Whatever an index says of a background: one that is inserted is stored with its own mask."""
    monkeypatch.setattr("flmm_detseg.store.tile_index.sign_record", lambda *arguments: "signed")
    monkeypatch.setattr("flmm_detseg.store.disk.sign_record", lambda *arguments: "signed")
    tiles = wallpaper()
    cache = open_cache(folder=tmp_path)
    insert(cache, tiles, mask_of(4))
    cache.close()
    with rows_of(tmp_path) as rows:
        ((mask,),) = rows.execute("SELECT mask FROM units").fetchall()
        rows.execute("UPDATE units SET mask = ?", (bytes([0b11101111]) + mask[1:],))
    cache = open_cache(folder=tmp_path, admission="second_sighting")
    assert cache.match(tiles, NAMESPACE) is None
    assert insert(cache, tiles, mask_of(4), session="s")[0]
    assert cache.stats()["dropped"] == {"corrupt": 1}
    match = cache.match(tiles, NAMESPACE, session="s")
    assert match is not None
    assert np.array_equal(match.key.mask, mask_of(4))
    cache.close()
    match = open_cache(folder=tmp_path).match(tiles, NAMESPACE)
    assert match is not None
    assert np.array_equal(match.key.mask, mask_of(4))


def test_numbers_that_are_none_do_not_end_a_request(tmp_path):
    cache = open_cache(folder=tmp_path, disk_bytes=60_000)
    for seed in range(3):
        insert(cache, picture(seed), mask_of(3))
        cache.match(picture(seed), NAMESPACE)
    with rows_of(tmp_path) as rows:
        rows.execute("UPDATE units SET bytes = 'many', score = 'high', freq = 'often', saved_ms = x'ff'")
        rows.execute("INSERT OR REPLACE INTO state VALUES ('clock', 'noon')")
    for seed in range(3, 12):
        assert insert(cache, picture(seed), mask_of(3))[0]
    assert cache.stats()["errors"] == {"disk": 0}
    cache.close()
    assert served(tmp_path, range(12)) >= 3


def test_names_of_damaged_rows_lead_to_no_other_file(tmp_path):
    cache = open_cache(folder=tmp_path / "cache")
    insert(cache, picture(0), mask_of(3))
    cache.close()
    (tmp_path / "precious.safetensors").write_bytes(b"not ours")
    with rows_of(tmp_path / "cache") as rows:
        rows.execute("UPDATE units SET name = '../../precious', bytes = 8")
    assert served(tmp_path / "cache", range(1)) == 0
    assert (tmp_path / "precious.safetensors").exists()


@pytest.mark.parametrize("damage", ["rubbish", "middle", "empty", "rows"])
def test_damaged_index_begins_anew(tmp_path, damage):
    cache = open_cache(folder=tmp_path)
    for seed in range(12):
        insert(cache, picture(seed), mask_of(3))
    cache.close()
    index = tmp_path / "index-0.sqlite"
    data = bytearray(index.read_bytes())
    if damage == "rubbish":
        index.write_bytes(b"no data base" * 100)
    elif damage == "middle":
        data[4096:12288] = os.urandom(8192)
        index.write_bytes(data)
    elif damage == "empty":
        index.write_bytes(b"")
    else:
        with closing(sqlite3.connect(index, isolation_level=None)) as rows:
            rows.execute("UPDATE units SET mask = ?, digest = 'no number' WHERE seq < 6", (b"x",))
            rows.execute("UPDATE units SET voters = ?, bucket = 'none' WHERE seq > 9", (b"odd",))
    cache = open_cache(folder=tmp_path)
    hits = 0
    for seed in range(12):
        match = cache.match(picture(seed), NAMESPACE)
        if match is not None:
            check(match, picture(seed))
            hits += 1
    assert hits == (4 if damage == "rows" else 0)
    assert insert(cache, picture(20), mask_of(3))[0]
    cache.close()
    assert served(tmp_path, range(21)) == hits + 1


def test_process_with_the_damaged_index_open_follows(tmp_path):
    first = open_cache(folder=tmp_path)
    insert(first, picture(0), mask_of(3))
    (tmp_path / "index-0.sqlite").write_bytes(b"rubbish" * 2000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"index-0.sqlite{suffix}").unlink(missing_ok=True)
    second = open_cache(folder=tmp_path)
    assert insert(second, picture(1), mask_of(3))[0]
    match = first.match(picture(1), NAMESPACE)
    assert match is not None
    check(match, picture(1))
    assert (tmp_path / "index-1.sqlite").exists()
    assert not (tmp_path / "index-0.sqlite").exists()


@pytest.mark.parametrize(
    "error", [sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError]
)
def test_a_statement_that_fails_costs_its_entry_only(tmp_path, monkeypatch, error):
    cache = open_cache(folder=tmp_path)
    for seed in range(3):
        insert(cache, picture(seed), mask_of(3))

    def fail(*arguments):
        raise error("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(disk.DiskTier, "_insert_row", fail)
        insert(cache, picture(3), mask_of(3))
    assert cache.stats()["errors"] == {"disk": 1}
    cache.close()
    assert served(tmp_path, range(4)) == 3


@pytest.mark.parametrize("version", ["before versions", "of the future"])
def test_index_of_another_version_is_followed_by_a_new_one(tmp_path, version):
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    cache.close()
    with rows_of(tmp_path) as rows:
        if version == "of the future":
            rows.execute("PRAGMA user_version = 99")
        else:
            rows.execute("DROP TABLE units")
            rows.execute("CREATE TABLE units (seq INTEGER PRIMARY KEY, name TEXT, mask BLOB)")
            rows.execute("PRAGMA user_version = 0")
    cache = open_cache(folder=tmp_path)
    assert insert(cache, picture(1), mask_of(3))[0]
    cache.close()
    # No repair, no pause.
    assert served(tmp_path, range(2)) == 1
    assert len(files(tmp_path)) == 1
    assert [path.name for path in sorted(tmp_path.glob("index-*.sqlite"))] == ["index-1.sqlite"]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    open_cache(folder=tmp_path).close()
    (tmp_path / "index-old.sqlite").write_bytes(b"mine")
    (tmp_path / "index-3-backup.sqlite").write_bytes(b"mine too")
    cache = open_cache(folder=tmp_path)
    insert(cache, picture(0), mask_of(3))
    cache.close()
    assert served(tmp_path, range(1)) == 1
    assert (tmp_path / "index-old.sqlite").read_bytes() == b"mine"
