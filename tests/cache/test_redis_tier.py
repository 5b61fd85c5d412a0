from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

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


@pytest.fixture
def server(tmp_path):
    """A server on a free port, in a process of its own: (URL, process). Fakeredis where no real one is installed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if BINARY is None:
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
