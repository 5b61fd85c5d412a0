"""Everything that is registered is found and built by its short name in a process that has imported nothing."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import mmengine.registry
import pytest
from mmengine.registry import Registry

from flmm_detseg import registry
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.refiners import SAMRefiner
from flmm_detseg.registry import MODELS, way_to_build

PACKAGE = Path(__file__).resolve().parents[1] / "flmm_detseg"
# Its names are settings of the cache, not types.
NOT_BY_TYPE = {"EVICTION"}
_CODE = """
import json
from mmengine.config import Config
from flmm_detseg import registry
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS

names, recipe = json.loads({text!r})
wrong = [f"{{place}}.{{name}}" for place, name in names if getattr(registry, place).get(name) is None]

def kind(part):
    return type(MODELS.build(part)).__name__

built = [
    kind(dict(type="LlavaAdapter", pretrained="data/models/tiny_llava")),
    kind(dict(type="SAMRefiner", checkpoint="data/models/tiny_sam")),
    kind(dict(type="NoRegions")),
    kind(dict(type="Partitioner", source=dict(type="FrameDifference"))),
    kind(dict(type="PreFusion")),
    kind(dict(type="CacheSettings", host_bytes=1 << 20, approximate=dict(type="ApproximateSettings", tau=3))),
    kind(dict(type="CachedLMM", lmm=dict(type="LlavaAdapter", pretrained="data/models/tiny_llava_streams"),
              partitioner=dict(type="Partitioner", source=dict(type="NoRegions")))),
    kind(recipe["model"]),
]
from flmm_detseg.engine.checks.config_check import check_config
check_config(Config(recipe), "by name")
print(json.dumps([wrong, built]))
"""


def registered() -> list[tuple[str, str]]:
    """Registry and name of every class or function that a decorator of the package registers."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                text = ast.unparse(decorator)
                if ".register_module(" in text:
                    found.append((text.partition(".")[0], node.name))
    return [entry for entry in found if entry[0] not in NOT_BY_TYPE]


def by_name(node):
    """A config whose types are short names, as a person would write them by hand."""
    if isinstance(node, dict):
        return {key: _short(value) if key == "type" else by_name(value) for key, value in node.items()}
    return [by_name(value) for value in node] if isinstance(node, (list, tuple)) else node


def _short(kind: str) -> str:
    return kind.removesuffix(".from_pretrained").rpartition(".")[2]


@pytest.mark.slow
def test_every_name_resolves_and_a_whole_recipe_builds_by_names(run_python, monkeypatch):
    from flmm_detseg.models import read_config

    names = registered()
    assert len(names) > 60
    assert {"HeadRegions", "MMDetDetector", "CacheSettings", "SAMRefiner", "Qwen3VLAdapter"} <= {
        name for _, name in names
    }
    config = read_config("configs/tiny/frozen_tiny_llava_refcoco_png.py").to_dict()
    keys = ("model", "train_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler", "train_cfg")
    recipe = {key: by_name(config[key]) for key in (*keys, "default_hooks", "custom_hooks")}
    text = json.dumps([names, recipe])
    assert "flmm_detseg." not in text.replace("flmm_detseg.com", "")
    wrong, built = json.loads(run_python(_CODE.format(text=text)).stdout.splitlines()[-1])
    assert wrong == []
    assert built == [
        "LlavaAdapter", "SAMRefiner", "NoRegions", "Partitioner", "PreFusion", "CacheSettings",
        "CachedLMM", "GroundingLMM",
    ]  # fmt: skip


def test_locations_are_the_modules_that_register():
    """A registry imports its locations before it looks a name up; packages alone import nothing."""
    holders: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                place, dot, _ = ast.unparse(decorator).partition(".register_module(")
                if dot and place not in NOT_BY_TYPE:
                    holders.setdefault(place, set()).add(name)
    for place, modules in holders.items():
        # lmms.all_families imports every family, whatever their number.
        modules = {name for name in modules if ".lmms.families." not in name}
        assert modules <= set(getattr(registry, place)._locations), place


def test_arguments_say_which_way_to_build_is_meant():
    assert MODELS.get("LlavaAdapter") is LlavaAdapter
    assert way_to_build(LlavaAdapter, ["pretrained", "dtype"]) == LlavaAdapter.from_pretrained
    assert way_to_build(LlavaAdapter, ["config"]) == LlavaAdapter.from_config
    assert way_to_build(LlavaAdapter, ["model", "processor"]) is LlavaAdapter
    assert way_to_build(SAMRefiner, ["variant"]) == SAMRefiner.from_pretrained
    assert way_to_build(SAMRefiner, ["model"]) is SAMRefiner
    assert way_to_build(dict, ["x"]) is dict
    with pytest.raises(ConfigError, match="LlavaAdapter needs `pretrained` or `config`, given are: dtype"):
        MODELS.build(dict(type="LlavaAdapter", dtype="float32"))
    with pytest.raises(ConfigError, match=r"`model.lmm`: LlavaAdapter needs `pretrained` or `config`"):
        MODELS.build(dict(type="GroundingLMM", lmm=dict(type="LlavaAdapter"), heads={}))


def test_no_registry_of_mmengine_lacks_a_child_of_ours():
    """It would warn of a scope that it cannot find, once for each, in every run."""
    roots = {name: value for name, value in vars(mmengine.registry).items() if isinstance(value, Registry)}
    assert len(roots) > 20
    assert [name for name, root in roots.items() if registry.SCOPE not in root.children] == []
