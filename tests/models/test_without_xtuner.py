"""A recipe is read, shown, built, stored and copied where XTuner, which trains it, cannot be imported."""

from __future__ import annotations

import json

_CHILD = """_base_ = ["mine/tiny_copy.py"]
model = dict(lmm=dict(rows=dict(merge="max")))
custom_hooks = [dict(type="FrozenGuardHook")]
param_scheduler = [dict(type="LinearLR", by_epoch=False)]
"""
_PROGRAM = (
    f"CHILD = {_CHILD!r}"
    + """
import json, sys
from pathlib import Path

sys.modules["xtuner"] = None  # importing it raises an error from now on

import numpy as np
import torch
from mmengine.config import Config
from flmm_detseg import Grounder, cli
from flmm_detseg.engine.checks.config_check import check_config
from flmm_detseg.errors import ConfigError
from flmm_detseg.models.from_config import dump_config, read_config
from flmm_detseg.utils.configs import TINY_CONFIG

torch.manual_seed(0)
grounder = Grounder.from_config(TINY_CONFIG, device="cpu", untrained=True)
grounder.save_pretrained("model")
again = Grounder.from_pretrained("model", device="cpu")
image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
coarse = [one.ground(image, "a red star", phrases=["a red star"]).coarse_logits for one in (grounder, again)]
dump_config(TINY_CONFIG, Path("mine/tiny_copy.py"))
Path("child.py").write_text(CHILD)
child = read_config("child.py")
try:
    cli.main(["show-config", "child.py", "--diff-base"])
except SystemExit as ended:
    shown = ended.code
try:
    read_config(TINY_CONFIG).train_cfg.type
    error = None
except ImportError as raised:
    error = str(raised)
try:
    check_config(Config(dict(train_cfg=dict(type="ResumableTrainLoop"))), "mine")
except ConfigError as raised:
    refused = str(raised)
print(json.dumps(dict(
    same=all(map(np.array_equal, *coarse)), evaluations=list(read_config("model").refcoco_eval), shown=shown,
    merge=child.model.lmm.rows["merge"], error=error, refused=refused,
    imported=[name for name in sys.modules if name.split(".")[0] == "xtuner" and sys.modules[name] is not None],
)))
"""
)


def test_all_but_training_works(run_python):
    done = run_python(_PROGRAM)
    found = json.loads(done.stdout.splitlines()[-1])
    assert "xtuner" in found.pop("error")
    assert "`train_cfg.type` is 'ResumableTrainLoop', which cannot be imported here" in found.pop("refused")
    assert found == {
        "same": True, "evaluations": ["refcoco_val", "refcoco_testA", "refcoco_testB"], "shown": 0, "merge": "max",
        "imported": [],
    }  # fmt: skip
    assert (
        "`train_cfg` was not checked, training does not work here: No module named 'xtuner.engine'"
        in done.stderr
    )
