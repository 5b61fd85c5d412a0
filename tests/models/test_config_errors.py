"""A config that cannot be read says which line, and what to write instead."""

from __future__ import annotations

import shutil

import pytest
from train_parts import ROOT

from flmm_detseg.errors import ConfigError
from flmm_detseg.models import read_config

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
