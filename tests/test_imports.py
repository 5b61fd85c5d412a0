"""What importing costs: a demo starts without the frameworks that training needs."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "flmm_detseg"
LAZY = sorted(
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in PACKAGE.rglob("__init__.py")
    if "lazy_names(" in path.read_text()
)


def test_the_api_imports_no_framework(run_python):
    code = """
import json, sys
from flmm_detseg import Grounder, GroundingResult
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), len(sys.modules))
"""
    names, _, number = run_python(code).stdout.splitlines()[-1].rpartition(" ")
    heavy = {"accelerate", "deepspeed", "matplotlib", "mmcv", "mmdet", "mmseg", "peft", "redis", "scipy"}
    heavy |= {"segment_anything", "transformers", "xtuner"}
    assert heavy & set(json.loads(names)) == set()
    assert int(number) < 2000


@pytest.mark.parametrize("name", LAZY)
def test_a_package_has_the_names_that_it_lists(name):
    assert len(LAZY) >= 13
    package = importlib.import_module(name)
    (block,) = (
        node
        for node in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    listed = {alias.name for statement in block.body for alias in statement.names}
    assert listed == set(package.__all__) - {"__version__"}
    for entry in listed:
        assert getattr(package, entry) is not None
        assert entry in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_package_finds_its_modules(run_python):
    code = """
import flmm_detseg.heads
print(flmm_detseg.heads.gates.__name__, flmm_detseg.inference.__name__)
"""
    assert run_python(code).stdout.splitlines()[-1] == "flmm_detseg.heads.gates flmm_detseg.inference"
