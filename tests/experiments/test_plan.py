"""Plans: the repository's own, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.experiments.plan import read_plan
from flmm_detseg.utils.paths import REPOSITORY

PLANS = sorted((REPOSITORY / "configs").rglob("*_stages*.py"))
CONFIG = "configs/tiny/detseg_detection.py"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_repositorys_plans_can_be_read(path: Path) -> None:
    plan = read_plan(path)
    assert plan.stages
    assert plan.evaluations


def test_the_chain_has_the_three_stages() -> None:
    plan = read_plan(REPOSITORY / "configs" / "tiny" / "detseg_stages.py")
    assert [stage.name for stage in plan.stages] == ["heads", "joint", "stability"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan_stages.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("evaluations = []", "no `stages`"),
        ("stages = [dict(runs=[])]", "lacks `name`"),
        ("stages = [dict(name='a', runs=[dict(name='x')])]", r"runs\[0\] lacks `config`"),
        ("stages = [dict(name='a', runs=[dict(name='x', config='no.py')])]", "no.py does not exist"),
        (f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}', init_fron=[])])]", "init_from"),
        (
            f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}', init_from=['y'])])]",
            "'y', which is no run",
        ),
        (f"stages = [dict(name='a', runs=2 * [dict(name='x', config='{CONFIG}')])]", "used twice: x"),
        (
            f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}')])]\n"
            "evaluations = [dict(name='e', tool='eval_none.py', run='x')]",
            "eval_none.py does not exist",
        ),
        (
            f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}')])]\n"
            "evaluations = [dict(name='e', tool='train.py', run='z')]",
            "no run 'z'",
        ),
        (
            f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}')])]\n"
            "evaluations = [dict(name='e', tool='train.py')]",
            "lacks `run`",
        ),
        (
            f"stages = [dict(name='a', runs=[dict(name='x', config='{CONFIG}')])]\n"
            "evaluations = [dict(name='e', tool='train.py', config='none.py')]",
            "none.py does not exist",
        ),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_plan(write(tmp_path, text))


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_plan(tmp_path / "none.py")
