"""`flmm-detseg app`: its arguments. The page itself is opened in tests/app/test_page.py."""

from __future__ import annotations

import argparse
import socket

import pytest

from flmm_detseg.app.server import bind
from flmm_detseg.commands import app
from flmm_detseg.errors import ConfigError, DataError, MissingDependencyError, RunError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    app.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--lmm", "x", "--checkpoint", "y"], DataError, "leave one of them out"),
        (["--refiner", "y"], DataError, "goes with --lmm"),
        (["--stream-checkpoint", "y"], DataError, "--stream CONFIG"),
        (["--port", "99999"], DataError, "0 to 65535"),
        (["no_such_config"], ConfigError, "does not exist"),
        (["--stream", "no_such_config"], ConfigError, "does not exist"),
    ],
)
def test_what_contradicts_itself_is_said_before_anything_is_loaded(words, error, says):
    with pytest.raises(error, match=says):
        app.run(parsed(*words))


def test_without_gradio_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="make install-app"):
        app.run(parsed())


def test_only_this_machine_is_listened_to_unless_asked():
    assert parsed().host == "127.0.0.1"
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(RunError, match=f"{port}.*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(RunError, match="cannot listen"):
        bind("192.0.2.1", 0)
    assert isinstance(first, socket.socket)
