"""A config that cannot be read says which line, and what to write instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from train_parts import ROOT

from flmm_detseg.errors import ConfigError
from flmm_detseg.models import read_config
from flmm_detseg.models.from_config import dump_config
from flmm_detseg.registry import MODELS

BASE = "from mmengine.config import read_base\nwith read_base():\n    from .frozen_tiny_llava_refcoco_png import *\n"
LAZY = "a config cannot call it, index it or compute with it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("configs")
    shutil.copytree(ROOT / "configs", root / "configs")
    return root / "configs" / "tiny"


@pytest.mark.case("model/config_message")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{BASE}import os\nwork_dir = os.path.join('a', 'b')\n", ("line 5", "os.path.join('a', 'b')", LAZY)),
        (f"{BASE}import torch\n\nlr = 1 if torch.cuda.is_available() else 2\n", ("line 6", "is_available", LAZY)),
        (f"{BASE}from flmm_detseg.models import GroundingLMM\nmodel = GroundingLMM(lmm=lmm)\n", ("line 5", LAZY)),
        (f"{BASE}from math import pi\nfrom torch import nn\nlr = nn * 2\n", ("line 6", LAZY)),
        (f"{BASE}from torch import nn\nlr = nn[0]\n", ("line 5", LAZY)),
        (f"{BASE}lr = 1 / 0\n", ("line 4", "ZeroDivisionError: division by zero")),
        (f"{BASE}raise ValueError\n", ("line 4", "ValueError raised by")),
        (f"{BASE}import os, sys\n", ("multiple modules in one line",)),
        ("from .frozen_tiny_llava_refcoco_png import model\nx = None\n", ("line 1", "inside of `with read_base():`")),
        (f"{BASE}from ..tiny.detseg_joint import model\nmodel = model\n", ("line 4", "`with read_base():`")),
        (f"{BASE}from .detseg_joint import model as m\nmodel = dict(a=[m.lmm])\n", ("line 4", "`with read_base():`")),
    ],
)  # fmt: skip
def test_the_line_and_what_to_write_instead(text, words, folder):
    path = folder / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    for word in ("mine.py", *words):
        assert word in str(error.value), str(error.value)


@pytest.mark.case("model/config_message")
def test_a_base_at_fault_is_named(folder):
    (folder.parent / "_base_" / "broken.py").write_text("import os\nwork_dir = os.getcwd()\n")
    path = folder / "mine.py"
    path.write_text(BASE.replace(".frozen_tiny_llava_refcoco_png", ".._base_.broken"))
    with pytest.raises(
        ConfigError, match=r"in \S+broken\.py line 2 .`work_dir = os\.getcwd\(\)`.*cannot call it"
    ):
        read_config(path)


@pytest.mark.case("model/config_message")
def test_plain_python_and_classes_stay_allowed(folder):
    path = folder / "mine.py"
    path.write_text(
        f"{BASE}from torch.optim import SGD\nnames = [f'layer_{{i}}' for i in range(3)]\n"
        "optim_wrapper.update(optimizer=dict(type=SGD, lr=0.1 * 2))\n"
    )
    assert read_config(path).optim_wrapper.optimizer.lr == 0.2


_CLASSIC = '_base_ = ["{base}"]\nmodel = dict(lmm=dict(rows=dict(merge="max")))\n'
_LAZY = """from mmengine.config import read_base

with read_base():
    from {base} import *

model.update(lmm=dict(rows=dict(merge="max")))
"""


@pytest.fixture
def copy_of_tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return dump_config("configs/tiny/frozen_tiny_llava_refcoco_png.py", tmp_path / "mine" / "tiny_copy.py")


@pytest.mark.parametrize(
    "text", [_CLASSIC.format(base="mine/tiny_copy.py"), _LAZY.format(base=".mine.tiny_copy")]
)
def test_a_copied_config_is_inherited_in_both_ways(copy_of_tiny, text):
    Path("child.py").write_text(text)
    child = read_config("child.py")
    assert child.model.lmm.rows == dict(merge="max")
    assert child.model.lmm.pretrained == "data/models/tiny_llava"
    assert MODELS.build(child.model).lmm.num_layers == 4


def test_a_child_in_configs_reads_its_base():
    assert read_config("configs/ablations/max_merge.py").model.lmm.rows == dict(merge="max")


def test_parts_of_a_classic_child_are_given_by_name(copy_of_tiny):
    Path("child.py").write_text(
        '_base_ = ["mine/tiny_copy.py"]\n'
        'model = dict(lmm=dict(_delete_=True, type="LlavaAdapter", pretrained="data/models/tiny_llava"),\n'
        '             heads=dict(phrase=dict(mask_head=dict(type="UNetHead"), sam=dict(type="SAMRefiner"))))\n'
        'custom_hooks = [dict(type="FrozenGuardHook")]\n'
    )
    child = read_config("child.py")
    assert MODELS.build(child.model).heads["phrase"].sam is not None
    assert child.default_scope == "flmm_detseg"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (_CLASSIC.format(base=ROOT / "configs/tiny/detseg_joint.py"), "is not inherited with `_base_ = .*copy-config"),
        ("from flmm_detseg.heads import UNetHead\n" + _CLASSIC.format(base="mine/tiny_copy.py"), "above that line"),
        (_LAZY.format(base="..configs.tiny.detseg_joint"), "relative imports .*copy-config NAME FOLDER.*not found"),
        (_LAZY.format(base="flmm_detseg.configs.tiny.detseg_joint"), "relative imports .*copy-config NAME FOLDER"),
    ],
)  # fmt: skip
def test_what_cannot_be_inherited_says_how_else(copy_of_tiny, text, match):
    Path("child.py").write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_config("child.py")
