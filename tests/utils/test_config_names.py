from __future__ import annotations

from pathlib import Path

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils import paths
from flmm_detseg.utils.configs import config_file, config_name, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny" / "detseg_joint.py"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["detseg_joint", "tiny/detseg_joint", "configs/tiny/detseg_joint.py", "configs/tiny/detseg_joint"]
)
def test_a_config_has_a_name_in_every_folder(name, elsewhere):
    assert config_file(name) == TINY


def test_the_current_folder_comes_first(elsewhere, capsys):
    own = Path("configs/tiny/detseg_joint.py")
    own.parent.mkdir(parents=True)
    own.touch()
    assert config_file("detseg_joint") == config_file(str(own)) == own
    Path("configs/mine.py").touch()
    assert config_file("mine") == Path("configs/mine.py")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"config detseg_joint: {own}, not {TINY}, which has that name as well"]


def test_a_file_is_a_config_by_its_ending(elsewhere):
    """A folder's own files do not stand for configs that are called alike."""
    Path("detseg_joint").touch()
    assert config_file("detseg_joint") == TINY
    Path("detseg_joint.py").touch()
    assert config_file("detseg_joint.py") == Path("detseg_joint.py")
    Path("notes.txt").touch()
    assert config_file("notes.txt") == Path("notes.txt")


def test_dots_are_kept_in_the_name_of_results():
    assert config_name("llava/llava1.5_a") == config_name("configs/llava/llava1.5_a.py") == "llava1.5_a"
    assert config_name("llava1.5_b") != config_name("llava1.5_a")


def test_an_installed_package_has_copies(elsewhere, monkeypatch):
    shipped = elsewhere / "package" / "_shipped"
    (shipped / "configs" / "a").mkdir(parents=True)
    (shipped / "configs" / "a" / "b.py").touch()
    monkeypatch.setattr(paths, "is_checkout", lambda: False)
    monkeypatch.setattr(paths, "SHIPPED", shipped)
    assert config_file("b") == config_file("configs/a/b.py") == shipped / "configs" / "a" / "b.py"
    assert list(shipped_configs()) == ["a/b"]
    with pytest.raises(ConfigError, match="then from .*_shipped"):
        config_file("c")


def test_what_is_not_there(elsewhere):
    with pytest.raises(
        ConfigError, match=r"config tiny/detseg_jont does not .*list-configs.*`tiny/detseg_joint`"
    ):
        config_file("tiny/detseg_jont")
    for folder in ("x", "y"):
        Path("configs", folder).mkdir(parents=True)
        Path("configs", folder, "same.py").touch()
    with pytest.raises(ConfigError, match="x/same, y/same have that name"):
        config_file("same")
    with pytest.raises(ConfigError, match="plan gone does not exist"):
        config_file("gone", "plan")
    with pytest.raises(ConfigError, match="does not exist"):
        config_file("n" * 5000)


def test_the_list_has_whole_configs_only():
    names = shipped_configs()
    assert len(names) > 60
    assert not any(name.startswith("_base_") for name in names)
    assert all(path.is_file() for path in names.values())
