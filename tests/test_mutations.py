"""The list of mutations fits the code; ``tests/mutations/run.py`` tries them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from test_cases import all_cases, cases_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_mutations", ROOT / "tests" / "mutations" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_mutation_can_be_made(runner):
    mutations = runner.read_list()
    assert len({mutation.id for mutation in mutations}) == len(mutations) > 100
    for mutation in mutations:
        changed = mutation.applied(ROOT)
        if mutation.file.endswith(".py"):  # the mend of a false claim is a sentence of a page
            compile(changed, mutation.file, "exec")
        assert mutation.new != mutation.old
        assert all((ROOT / name).is_file() for name in mutation.tests), mutation.id
    with pytest.raises(ValueError, match="occurs 0 times"):
        runner.Mutation("x", "", mutation.file, "no such text", "", ()).applied(ROOT)


def test_the_mend_of_every_case_is_taken_back_by_a_mutation(runner):
    """A case's test that passes without the mend proves nothing."""
    chosen = [m for m in runner.read_list() if m.case is not None and not m.equivalent]
    assert all_cases() - {mutation.case for mutation in chosen} == set()
    for mutation in chosen:
        assert mutation.case in all_cases(), mutation.id
        for name in mutation.tests:
            assert mutation.case in cases_of(ROOT / name), f"{mutation.id}: no test of {name} is marked so"


def test_survivors_and_kills_are_distinguished(runner, tmp_path):
    (tmp_path / "part.py").write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    test = "from part import double\n\n\ndef test_it():\n    assert double(2) == 4\n"
    (tmp_path / "test_part.py").write_text(test, encoding="utf-8")
    dead = runner.Mutation("dead", "", "part.py", "2 * x", "3 * x", ("test_part.py",))
    alive = runner.Mutation("alive", "", "part.py", "2 * x", "x * x", ("test_part.py",))
    lost = runner.Mutation("lost", "", "part.py", "2 * x", "x", ("no_such_file.py",))
    outcomes = [runner.try_mutation(tmp_path, mutation, 60)["outcome"] for mutation in (dead, alive, lost)]
    assert outcomes == ["killed", "survived", "error"]
    assert "return 2 * x" in (tmp_path / "part.py").read_text(encoding="utf-8")
