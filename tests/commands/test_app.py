"""`flmm-detseg app`: its arguments. The page itself is opened in tests/app/test_page.py."""

from __future__ import annotations

import argparse
import socket
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from flmm_detseg.app.limits import Limits
from flmm_detseg.app.server import bind
from flmm_detseg.commands import app
from flmm_detseg.commands.chosen_model import ChosenModel, choose_model
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


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://localhost:7860"),
        ("::1", "http://localhost:7860"),
        ("::", "http://[::]:7860"),
        ("0.0.0.0", "http://0.0.0.0:7860"),
    ],
)
def test_the_address_can_be_opened(host, address):
    assert app._address(host, 7860) == address


def test_the_page_names_a_model_and_no_folder_of_this_machine(tmp_path):
    (tmp_path / "my_llava").mkdir()
    for given, shown in (
        (["--lmm", "owner/name"], "owner/name"),
        (["--lmm", str(tmp_path / "my_llava")], "my_llava"),
        ([str(tmp_path / "my_llava")], "my_llava"),
    ):
        arguments = parsed(*given)
        about = app._about(arguments, choose_model(arguments), _grounder(), Limits(), tiny=False)
        assert about.model == shown


def _grounder(domain: object = None, **config: object) -> SimpleNamespace:
    """What is read of a grounder to say what its model knows."""
    return SimpleNamespace(
        model=SimpleNamespace(domain=domain, built_from=Config(config) if config else None)
    )


def test_the_page_says_what_a_model_was_trained_on():
    def knows(grounder: SimpleNamespace, *words: str) -> str:
        arguments = parsed(*words)
        return app._about(arguments, choose_model(arguments), grounder, Limits(), tiny=False).headline

    loader = dict(
        dataset=dict(type="RefCOCODataset", refs_file="/home/me/my data/refs.p", image_dir="photos/")
    )
    own = knows(_grounder(train_dataloader=loader), "mine.py")
    assert r"Trained on: RefCOCODataset\: refs\.p\, photos." in own
    assert "home" not in own
    assert "my data" not in own
    assert "does not say which pictures it knows" in own
    stored = knows(
        _grounder(SimpleNamespace(source="a [link](http://x) <b>"), trained_on=["JSONLDataset: a.jsonl"]),
        "mine.py",
    )
    assert "JSONLDataset\\: a\\.jsonl." in stored
    assert "warns of others: a \\[link\\]\\(http\\:\\/\\/x\\) \\<b\\>." in stored
    long = knows(_grounder(trained_on=[f"D: {number}.json" for number in range(500)]), "mine.py")
    assert len(long) < 900
    assert "What it was trained on is not known." in knows(_grounder(), "mine.py")
    assert "Nothing of it was trained to point" in knows(_grounder(), "--lmm", "a/b")


def test_frames_of_a_relative_folder_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr("flmm_detseg.app.service.Service", lambda *given: taken.append(given[2]))
    monkeypatch.setattr(ChosenModel, "load", lambda self: None)
    arguments = parsed("--frames", "data/models/tiny_heads")
    app._service(arguments, choose_model(arguments))
    assert taken[0].names == ["scene.png"]
    assert taken[0].note == ""


def test_what_is_left_out_of_a_folder_of_frames_is_said(tmp_path, monkeypatch, capsys):
    for number in range(503):
        (tmp_path / f"{number:03}.png").touch()
    taken = []
    monkeypatch.setattr("flmm_detseg.app.service.Service", lambda *given: taken.append(given))
    monkeypatch.setattr(ChosenModel, "load", lambda self: _grounder())
    arguments = parsed("--frames", str(tmp_path))
    app._service(arguments, choose_model(arguments))
    frames = taken[0][2]
    assert frames.names[-1] == "499.png"
    said = "The folder has 503 pictures; the first 500 in the order of their names are here, 3 are left out."
    assert frames.note == said
    assert f"--frames: {said}" in capsys.readouterr().err
