"""The check of a config beyond what tests/test_configs.py sees: inherited copies, modules that cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from flmm_detseg.engine.checks.config_check import check_config, training_error
from flmm_detseg.errors import ConfigError
from flmm_detseg.models.from_config import dump_config, read_config

_CLASSIC = """_base_ = ["mine/tiny_copy.py"]
model = dict(lmm=dict(rows=dict(merge="max")))
custom_hooks = [dict(type="FrozenGuardHook")]
"""
_LAZY = """from mmengine.config import read_base

with read_base():
    from .mine.tiny_copy import *

model.update(lmm=dict(rows=dict(merge="max")))
"""


@pytest.mark.parametrize("text", [_CLASSIC, _LAZY])
def test_a_child_of_a_copied_config_is_checked_as_a_whole(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dump_config("configs/tiny/frozen_tiny_llava_refcoco_png.py", tmp_path / "mine" / "tiny_copy.py")
    Path("child.py").write_text(text)
    child = read_config("child.py")
    check_config(child, "child.py")
    child.model.lmm.rows_of_my_own = 1
    with pytest.raises(ConfigError, match=r"child\.py: `model\.lmm` has no argument `rows_of_my_own`"):
        check_config(child, "child.py")


def test_a_module_that_cannot_be_imported_is_no_unknown_name(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import of_nobody\nclass Part: ...\n")
    (tmp_path / "other_release.py").write_text("from json import of_nobody\nclass Part: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, words in (
        ("half_there", r"cannot be imported here \(No module named 'of_nobody'\).*doctor"),
        ("other_release", r"cannot be imported here \(cannot import name 'of_nobody' from 'json'.*doctor"),
        ("not_there", "cannot be found; check the name"),
        ("json", "cannot be found; check the name"),
    ):
        with pytest.raises(ConfigError, match=rf"mine: `part\.type` is '{module}\.Part', which {words}"):
            check_config(Config(dict(part=dict(type=f"{module}.Part"))), "mine")


def test_training_works_where_its_loop_is_imported(monkeypatch):
    assert training_error() is None
    monkeypatch.delitem(sys.modules, "flmm_detseg.engine.training.loop")
    monkeypatch.setitem(sys.modules, "xtuner", None)
    monkeypatch.setitem(sys.modules, "xtuner.engine.runner", None)
    assert "xtuner" in str(training_error())
