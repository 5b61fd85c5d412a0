"""Programs that tests start run the tree under test."""

from __future__ import annotations

import subprocess
import sys

import pytest
from train_parts import ROOT, environment


@pytest.mark.parametrize("given", [None, environment()])
def test_a_child_imports_the_package_beside_the_tests(tmp_path, given):
    command = [sys.executable, "-c", "import flmm_detseg; print(flmm_detseg.__file__)"]
    child = subprocess.run(command, capture_output=True, text=True, env=given, cwd=tmp_path, check=True)
    assert child.stdout.strip() == str(ROOT / "flmm_detseg" / "__init__.py")


def test_no_test_sets_another_path_for_its_children():
    # The last but one runs the tests of a copy, the last a wheel that it installed.
    own = ("conftest.py", "test_children.py", "mutations/run.py", "test_installed.py")
    files = [file for file in (ROOT / "tests").rglob("*.py") if not file.as_posix().endswith(own)]
    assert [str(file) for file in files if "PYTHONPATH" in file.read_text(encoding="utf-8")] == []


def test_no_two_test_files_share_a_name():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest collects files of one name once"
