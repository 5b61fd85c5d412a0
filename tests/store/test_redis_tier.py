from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_parts import NAMESPACE, check, insert, mask_of, open_cache, picture

from flmm_detseg.errors import MissingDependencyError

SECRET = "the same on every machine"
BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
STAND_IN = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis").serve_forever()
"""


@pytest.fixture(params=["fakeredis", *([Path(BINARY).name] if BINARY else [])])
def server(request, tmp_path):
    """A server on a free port, in a process of its own: (URL, process). A real one too, where one is installed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if request.param == "fakeredis":
        command = [sys.executable, "-c", STAND_IN, str(port)]
    else:
        command = [BINARY, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
            break
        except OSError:
            time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}/0", process
    process.terminate()
    process.wait(timeout=10)


def test_machines_share_features_and_nothing_else(server):
    url, _ = server
    first = open_cache(redis_url=url, secret=SECRET)
    second = open_cache(redis_url=url, secret=SECRET)
    for seed in range(3):
        insert(first, picture(seed), mask_of(3), prefix_key="p")
    for seed in range(3):
        match = second.match(picture(seed), NAMESPACE, prefix_key="p")
        assert match is not None
        served = check(match, picture(seed), "p")
        assert served.features
        assert not served.prefix
    assert second.match(picture(0), replace(NAMESPACE, tenant="another")) is None
    assert second.match(picture(0), replace(NAMESPACE, vision_fp="new")) is None
    stranger = open_cache(redis_url=url, secret="another secret of somebody")
    assert stranger.match(picture(0), NAMESPACE) is None
    second.clear(NAMESPACE)
    assert open_cache(redis_url=url, secret=SECRET).match(picture(0), NAMESPACE) is None


def test_forged_and_expired_values_are_misses(server):
    import redis

    url, _ = server
    first = open_cache(redis_url=url, secret=SECRET)
    for seed in range(3):
        insert(first, picture(seed), mask_of(3))
    client = redis.Redis.from_url(url)
    names = sorted(client.keys("*value*"))
    assert len(names) == 3
    forged = bytearray(client.get(names[0]))
    forged[-1] ^= 1
    client.set(names[0], bytes(forged))
    client.set(names[1], client.get(names[2]))
    client.delete(names[2])
    second = open_cache(redis_url=url, secret=SECRET)
    assert [second.match(picture(seed), NAMESPACE) for seed in range(3)] == [None] * 3
    assert second.stats()["dropped"] == {"corrupt": 2}
    assert second.stats()["errors"] == {"redis": 0}


def test_server_that_goes_away_is_a_miss(server):
    url, process = server
    cache = open_cache(redis_url=url, secret=SECRET)
    insert(cache, picture(0), mask_of(3))
    process.terminate()
    process.wait(timeout=10)
    started = time.monotonic()
    for seed in range(5):
        insert(cache, picture(seed), mask_of(3))
        match = cache.match(picture(seed), NAMESPACE)
        assert match is not None
        check(match, picture(seed))
    assert time.monotonic() - started < 3
    assert cache.stats()["errors"] == {"redis": 1}


def test_disk_and_redis_together(server, tmp_path):
    url, _ = server
    first = open_cache(redis_url=url, secret=SECRET, folder=tmp_path / "a")
    insert(first, picture(0), mask_of(3))
    second = open_cache(redis_url=url, secret=SECRET, folder=tmp_path / "b")
    match = second.match(picture(0), NAMESPACE)
    assert match is not None
    check(match, picture(0))
    # One damaged file: the server still has it.
    (file,) = (tmp_path / "a" / "entries").iterdir()
    file.write_bytes(np.random.default_rng(0).bytes(500))
    third = open_cache(redis_url=url, secret=SECRET, folder=tmp_path / "a", host_bytes=0)
    match = third.match(picture(0), NAMESPACE)
    assert match is not None
    check(match, picture(0))


def test_missing_package_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(MissingDependencyError, match="pip install redis"):
        open_cache(redis_url="redis://localhost", secret=SECRET)


def test_forged_rows_of_the_log_are_left_out(server):
    import redis

    url, _ = server
    tiles = np.full((64, 48), 200, np.uint8)
    tiles[3] = picture(0)[3]
    insert(open_cache(redis_url=url, secret=SECRET), tiles, mask_of(4))
    client = redis.Redis.from_url(url)
    (log,) = client.keys("*log*")
    ((_, row),) = client.xrange(log)
    assert row[b"mask"][0] == 0b11110111
    client.delete(log)
    client.xadd(log, row | {b"mask": bytes([0b11101111]) + row[b"mask"][1:]})
    client.xadd(log, {"clear": "", "signature": "forged"})
    cache = open_cache(redis_url=url, secret=SECRET)
    assert cache.match(tiles, NAMESPACE, session="s") is None
    insert(cache, tiles, mask_of(4), session="s")
    match = cache.match(tiles, NAMESPACE, session="s")
    assert match is not None
    assert np.array_equal(match.key.mask, mask_of(4))


def test_clearing_reaches_trimmed_values_other_machines_and_their_disks(server, tmp_path):
    import redis

    url, _ = server
    other = replace(NAMESPACE, tenant="another")
    first = open_cache(redis_url=url, secret=SECRET, folder=tmp_path / "a")
    second = open_cache(redis_url=url, secret=SECRET)
    strangers = open_cache(redis_url=url, secret="another secret of somebody")
    for seed in range(3):
        insert(first, picture(seed), mask_of(3))
    insert(first, picture(8), mask_of(3), other)
    insert(strangers, picture(0), mask_of(3))
    assert first.match(picture(0), NAMESPACE) is not None
    assert second.match(picture(0), NAMESPACE) is not None
    client = redis.Redis.from_url(url)
    for log in client.keys("*log*"):
        client.xtrim(log, maxlen=0, approximate=False)
    second.clear(NAMESPACE)
    # Another tenant's and another secret's stay.
    assert len(client.keys("*value*")) == 2
    assert [first.match(picture(seed), NAMESPACE) for seed in range(3)] == [None] * 3
    assert len(list((tmp_path / "a" / "entries").iterdir())) == 1
    assert first.match(picture(8), other) is not None
    insert(first, picture(0), mask_of(3))
    match = second.match(picture(0), NAMESPACE)
    assert match is not None
    check(match, picture(0))


def test_forged_messages_clear_nothing(server):
    import redis

    url, _ = server
    first = open_cache(redis_url=url, secret=SECRET)
    second = open_cache(redis_url=url, secret=SECRET)
    insert(first, picture(0), mask_of(3))
    assert second.match(picture(0), NAMESPACE) is not None
    client = redis.Redis.from_url(url)
    (log,) = client.keys("*log*")
    client.xadd(log, {"clear": "", "signature": "forged"})
    client.xadd(log, {"clear": ""})
    for cache in (first, second):
        assert cache.match(picture(0), NAMESPACE) is not None
        assert cache.stats()["backgrounds"] == 1


def test_old_messages_clear_nothing(server, tmp_path):
    url, _ = server
    first = open_cache(redis_url=url, secret=SECRET)
    first.clear(NAMESPACE)
    second = open_cache(redis_url=url, secret=SECRET, folder=tmp_path)
    insert(second, picture(0), mask_of(3))
    assert second.match(picture(0), NAMESPACE) is not None


def test_expired_values_leave_the_index(server):
    url, _ = server
    cache = open_cache(redis_url=url, secret=SECRET, redis_ttl_s=1, host_bytes=0)
    for seed in range(4):
        insert(cache, picture(seed), mask_of(3))
    cache.match(picture(99), NAMESPACE)
    assert cache.stats()["backgrounds"] == 4
    time.sleep(1.2)
    cache.match(picture(99), NAMESPACE)
    assert cache.stats()["backgrounds"] == 0
