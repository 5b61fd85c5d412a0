"""Every config of the repository: loads, reloads, its types resolve and its arguments bind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mmengine.config import Config

from flmm_detseg.engine.checks.config_check import (
    argument_names,
    check_config,
    check_machine,
    parse_overrides,
    resolve,
    walk,
)
from flmm_detseg.engine.checks.config_diff import base_files, diff_to_base
from flmm_detseg.errors import ConfigError
from flmm_detseg.models.from_config import without_start
from flmm_detseg.registry import MODELS, OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1] / "configs"
# A plan is a list of runs, not a config of one: tests/experiments reads them.
PLANS = sorted(ROOT.rglob("*_stages*.py"))
FILES = sorted(path for path in ROOT.rglob("*.py") if path not in PLANS)
RECIPES = [path for path in FILES if "_base_" not in path.parts]
# Ablations of recipes with several tasks, which are asked of the tiny recipe only.
JOINT = ("detseg_", "seg_token_")
ABLATIONS = [path for path in RECIPES if "ablations" in path.parts]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def load():
    loaded: dict[Path, Config] = {}

    def once(path: Path) -> Config:
        if path not in loaded:
            loaded[path] = Config.fromfile(path)
        return loaded[path]

    return once


def test_there_are_configs():
    assert len(RECIPES) >= 15
    assert len(ABLATIONS) >= 10


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dump_and_reload_are_equal(path, load, tmp_path, monkeypatch):
    if path.parent.name != "tiny":
        # Laying the text out takes most of a dump's time, and is the same for all.
        monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    config = load(path)
    config.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == config.to_dict()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_types_resolve_and_arguments_bind(path, load):
    check_config(load(path), name_of(path))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_has_what_training_and_evaluation_read(path, load):
    config = load(path).to_dict()
    needed = {"model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks"}
    assert needed | {"log_processor", "randomness"} <= set(config)
    heads = config["model"]["heads"]
    read_by = {
        "phrase": "refcoco_eval",
        "detection": "coco_eval",
        "segmentation": "semseg_eval",
        "language": "vqa_eval",
        "reasoning": "reason_eval",
    }
    assert {read_by[name] for name in heads} <= set(config), "every head of a recipe can be evaluated"
    if "reasoning" in heads:
        assert {"refcoco_eval", "gcg_eval"} <= set(config), "expressions asked for, and captions"
    assert config["optim_wrapper"]["clip_grad"]["max_norm"] == 1.0
    for where, node in walk(
        config
    ):  # every type outside of type strings was resolved above; these must be callable
        if "type" in node:
            assert callable(resolve(node["type"], where))


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in RECIPES
        if p.parent.name in ("tiny", "ablations") and ("detseg" in p.stem or "seg_token" in p.stem)
    ],
    ids=name_of,
)
def test_model_and_optimizer_of_a_joint_recipe_can_be_built(path, load):
    config = load(path)
    model = MODELS.build(without_start(config.model))
    built = OPTIMIZERS.build(dict(config.optim_wrapper.optimizer, params=model.parameters()))
    trained = sum(p.requires_grad for p in model.parameters())
    assert sum(len(group["params"]) for group in built.param_groups) == trained > 10


@pytest.mark.parametrize(("recipe", "readers"), [("detseg_lora", 7), ("detseg_seg_token_7b", 11)])
def test_the_7b_chain_learns_from_no_image_that_it_is_evaluated_on(recipe, readers, load):
    """Annotation files of the images that are evaluated: every reader of COCO images leaves them out."""
    config = load(ROOT / "llava" / f"{recipe}.py")
    referring = {"data/refcoco/refs(unc).p", "data/refcoco+/refs(unc).p", "data/refcocog/refs(umd).p"}
    assert referring == {item.refs_file for item in config.refcoco_eval.values()}
    # All else is evaluated on val2017, which shares no image with train2017 or train2014 (val2014 does).
    for name in ("coco_eval", "png_eval", "vqa_eval"):
        assert {item.image_dir for item in config[name].values()} == {"data/coco/val2017"}
    seen = 0
    for where, node in walk(config.train_dataloader.to_dict()):
        if str(node.get("image_dir", "")).startswith("data/coco"):
            # PACO's files name the folder of an image: train2017.
            assert node["image_dir"] in ("data/coco/train2017", "data/coco/train2014", "data/coco")
            assert referring <= set(node["exclude_image_ids_file"]), where
            seen += 1
    assert seen == readers
    # F-LMM's own recipe keeps its published protocol.
    published = load(ROOT / "llava" / "frozen_llava15_7b_refcoco_png.py").train_dataloader.to_dict()
    assert not any("exclude_image_ids_file" in node for _, node in walk(published))


def test_basenames_are_unique():
    names = [path.stem for path in RECIPES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_no_child_rebinds_a_scalar_of_a_base(path, load):
    inherited: dict = {}
    for base in base_files(path):
        inherited.update(load(base).to_dict())
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                name = getattr(target, "id", None)
                assert not isinstance(inherited.get(name), (int, float, str, bool)), (
                    f"{name} is a plain value of a base: what was built from it keeps the old one"
                )


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_short_and_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", ABLATIONS, ids=name_of)
def test_an_ablation_is_its_question(path):
    tree = ast.parse(path.read_text())
    assert "?" in ast.get_docstring(tree)
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) <= 15
    assert any("_base_" not in base.parts for base in base_files(path)), "an ablation changes a recipe"


@pytest.mark.parametrize("path", ABLATIONS, ids=name_of)
def test_an_ablation_changes_the_model_and_nothing_else(path):
    changed = diff_to_base(path)
    assert changed
    # Balancers that compare gradients need all tasks in every batch.
    # Full fine-tuning needs learning rates of its own; boxes in words are samples of their own.
    allowed = (
        "model.", "train_dataloader.sampler.", "train_dataloader.batch_sampler", "optim_wrapper.optimizer.groups",
        "train_dataloader.dataset.datasets.joint", "train_dataloader.dataset.ratios.joint",
    )  # fmt: skip
    if "_only_" in path.stem or path.stem.startswith("seg_token_"):  # one task's data; some of the data
        allowed = (*allowed, "train_dataloader.dataset.")
    if not path.stem.startswith(JOINT):
        allowed = ("model.",)
    assert all(key.startswith(allowed) for key in changed), changed


@pytest.mark.parametrize(
    "question", [p.stem for p in ABLATIONS if not p.stem.endswith("_7b") and not p.stem.startswith(JOINT)]
)
def test_every_question_can_be_asked_of_the_tiny_and_the_7b_recipe(question):
    def changes(name: str) -> set[str]:
        keys = set(diff_to_base(ROOT / "ablations" / f"{name}.py"))
        return keys - {"model.heads.phrase.sam.variant"}  # the tiny SAM's folder says its sizes itself

    assert changes(question) == changes(f"{question}_7b")


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if p.stem.startswith("frozen_") and "tiny" not in p.stem], ids=name_of
)
def test_f_lmms_recipe_of_an_lmm_says_the_lmm_and_nothing_else(path):
    changed = diff_to_base(path)
    assert changed
    assert all(key.startswith("model.lmm.") for key in changed), changed


def test_the_control_differs_from_the_tiny_recipe_in_the_lmm_folder_only():
    changed = diff_to_base(ROOT / "tiny" / "frozen_tiny_llava_refcoco_png_control.py")
    assert changed == {"model.lmm.pretrained": ("data/models/tiny_llava", "work_dirs/quickstart/control_lmm")}


def test_a_wrong_argument_is_named_with_its_place_and_a_suggestion(load):
    config = load(ROOT / "tiny" / "frozen_tiny_llava_refcoco_png.py")
    broken = Config(config.to_dict())
    broken.merge_from_dict({"model.heads.phrase.mask_head.base_chanels": 8})
    with pytest.raises(
        ConfigError, match=r"`model\.heads\.phrase\.mask_head` has no argument.*`base_channels`"
    ):
        check_config(broken, "broken.py")
    broken = Config(config.to_dict())
    broken.merge_from_dict({"train_dataloader.batchsize": 8})
    with pytest.raises(ConfigError, match=r"broken.py: `train_dataloader`.*`batch_size`"):
        check_config(broken, "broken.py")
    broken = Config(config.to_dict())
    broken.merge_from_dict({"model.heads.phrase.sam.type": "SAMRefinr"})
    with pytest.raises(ConfigError, match="SAMRefinr"):
        check_config(broken, "broken.py")


HOOK = "mmengine.hooks."


@pytest.mark.case("model/ema_hook")
@pytest.mark.parametrize(
    ("where", "part", "message"),
    [
        (
            "custom_hooks",
            [dict(type=HOOK + "EMAHook", momentum=0.5)],
            r"`custom_hooks\[0\]` is MMEngine's EMAHook",
        ),
        (
            "custom_hooks",
            [dict(type="EMAHook", ema_type="StochasticWeightAverage")],
            "trainable tensors only",
        ),
        ("custom_hooks", [dict(type=HOOK + "SyncBuffersHook")], "keep every bit"),
        ("custom_hooks", [dict(type=HOOK + "PrepareTTAHook", tta_cfg={})], r"tools/eval_\*\.py"),
        (
            "default_hooks.checkpoint",
            dict(type=HOOK + "CheckpointHook"),
            "use flmm_detseg.*GroundingCheckpointHook",
        ),
        ("train_cfg", dict(type="IterBasedTrainLoop", max_iters=3), "use it"),
        ("train_cfg", dict(type="xtuner.engine.runner.TrainLoop", max_iters=3), "ResumableTrainLoop; use it"),
        ("train_cfg", dict(by_epoch=False, max_iters=3), "`train_cfg` has no `type`"),
        (
            "param_scheduler",
            [dict(type="MultiStepLR", milestones=[1])],
            r"`param_scheduler\[0\]` counts epochs",
        ),
        ("param_scheduler", [dict(type="LinearLR", by_epoch=True)], "it would keep its first rate"),
    ],
)
def test_parts_that_cannot_work_are_refused_by_name(where, part, message, load):
    broken = Config(load(ROOT / "tiny" / "frozen_tiny_llava_refcoco_png.py").to_dict())
    *parents, last = where.split(".")
    node = broken
    for key in parents:
        node = node[key]
    node[last] = part
    with pytest.raises(ConfigError, match=message):
        check_config(broken, "broken.py")


@pytest.mark.case("model/ema_hook")
def test_mixed_precision_without_a_gpu_is_refused_before_weights_are_read(load, monkeypatch):
    half, whole = (load(ROOT / "llava" / "detseg_lora.py"), load(ROOT / "tiny" / "detseg_joint.py"))
    monkeypatch.setattr("flmm_detseg.engine.checks.config_check.get_device", lambda: "cpu")
    check_machine(whole, "joint.py")
    with pytest.raises(
        ConfigError, match=r"lora\.py: `optim_wrapper` is an AmpOptimWrapper, which needs a GPU"
    ):
        check_machine(half, "lora.py")
    monkeypatch.setattr("flmm_detseg.engine.checks.config_check.get_device", lambda: "cuda")
    check_machine(half, "lora.py")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("modl.lmm.dtype=float32", "`model`"),
        ("model.lm.dtype=float32", "`lmm`"),
        ("lr=0.1", "does not read `lr`"),
        ("visualization_hook.interval=3", "custom_hooks"),
        ("train_cfg.max_iters", "KEY=VALUE"),
    ],
)
def test_an_override_that_would_change_nothing_is_refused(option, message, load):
    with pytest.raises(ConfigError, match=message):
        parse_overrides([option], load(ROOT / "tiny" / "frozen_tiny_llava_refcoco_png.py"))


def test_overrides_are_read_as_python_values(load):
    config = load(ROOT / "tiny" / "frozen_tiny_llava_refcoco_png.py")
    assert parse_overrides(["train_cfg.max_iters=6", "custom_hooks.1.interval=2"], config) == {
        "train_cfg.max_iters": 6,
        "custom_hooks.1.interval": 2,
    }


def test_argument_names_follow_keyword_arguments_to_the_parent():
    class Parent:
        def __init__(self, a, b=1):
            pass

    class Child(Parent):
        def __init__(self, c, **kwargs):
            super().__init__(**kwargs)

    assert set(argument_names(Child)) == {"a", "b", "c"}
