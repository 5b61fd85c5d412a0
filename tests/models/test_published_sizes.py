"""Recipes at the sizes of the published LMMs that they name, on the meta device: no weights, no network."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from published_models import CONFIGS, PUBLISHED, RECIPES, recipe_config
from torch import nn
from transformers import PreTrainedModel

from flmm_detseg.engine.checks.config_diff import base_files
from flmm_detseg.models.shapes import model_on_meta
from flmm_detseg.registry import OPTIMIZERS

DETSEG = sorted(path for path in CONFIGS.glob("*/detseg_lora*.py") if path.parent.name != "tiny")
# Those of which there is a published LMM to begin with; `lisa_v1_*` begin at a LISA.
LISA = sorted(path for path in CONFIGS.glob("*/lisa_*.py") if not path.stem.startswith("lisa_v1_"))


def test_every_published_model_of_a_recipe_has_its_sizes_here() -> None:
    assert RECIPES.keys() == PUBLISHED.keys()


@pytest.fixture
def no_first_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are none; drawing them is most of the time that a model takes there."""
    for name in (
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "normal_",
        "uniform_",
        "trunc_normal_",
    ):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda _: None)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("no_first_values")
def test_a_recipe_fits_the_published_model_and_says_its_channels(name: str, tmp_path: Path) -> None:
    published, recipe = PUBLISHED[name], RECIPES[name]
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    model = model_on_meta(recipe_config(recipe), tmp_path)
    lmm, head = model.lmm, model.heads["phrase"]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert round(sum(p.numel() for p in lmm.parameters()) / 1e9, 1) == published.billions
    assert (lmm.num_layers, lmm.hidden_size) == (published.num_layers, published.hidden_size)
    assert lmm.attention_channels == head.mask_head.in_channels == published.channels
    assert head.text_proj.in_features == published.hidden_size
    assert (lmm.vision_channels, lmm.vision_grid) == (published.vision_channels, published.vision_grid)
    (base,) = [path for path in base_files(recipe) if path.parent.name == "models"]
    said = re.search(r"(\d+) attention channels", ast.get_docstring(ast.parse(base.read_text())) or "")
    assert said is not None, base
    assert int(said[1]) == published.channels, base


@pytest.mark.parametrize("recipe", DETSEG, ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_first_values")
def test_dense_heads_and_lora_fit_the_published_model(recipe: Path, tmp_path: Path) -> None:
    config = recipe_config(recipe)
    published = PUBLISHED[config.model.lmm.pretrained]
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    model = model_on_meta(config, tmp_path)
    blocks = model.lmm.facts.vision.num_layers
    for name in ("detection", "segmentation"):
        layers = model.heads[name].neck.vision_layers
        # LLaVA-1.5 reads the last block but one.
        assert layers[-1] == (blocks - 1 if "llava" in recipe.parts else blocks)
        assert list(layers) == sorted(layers)
    # Names are what the optimizer's groups go by; the optimizer refuses a group that matches none.
    optimizer = OPTIMIZERS.build(dict(config.optim_wrapper.optimizer, params=model.parameters()))
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if ".lora_" in parameter.flmm_name:
                rates.setdefault(parameter.flmm_name.split(".")[-2], set()).add(group["lr"])
    assert rates == {"vision": {0.5e-4}, "llm": {2e-4}, "projector": {2e-4}}
    lora = sum(p.numel() for name, p in model.lmm.named_parameters() if ".lora_" in name)
    assert 0 < lora < 0.05 * published.billions * 1e9


@pytest.mark.parametrize("recipe", LISA, ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_first_values")
def test_lisa_trains_what_lisa_trains(recipe: Path, tmp_path: Path) -> None:
    config = recipe_config(recipe)
    published = PUBLISHED[config.model.lmm.pretrained]
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    model = model_on_meta(config, tmp_path)
    width = published.hidden_size
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    lora = [name for name in trained if ".lora_" in name]
    assert len(lora) == 2 * 2 * published.num_layers
    assert all(re.search(r"language_model.*\.[qv]_proj\.lora_[AB]\.llm\.weight$", name) for name in lora)
    rows = [shape for name, shape in trained.items() if name.endswith("added_rows")]
    assert set(rows) == {(1, width)}
    project = {name: shape for name, shape in trained.items() if ".project." in name}
    assert {shape for shape in project.values() if len(shape) == 2} == {(width, width), (256, width)}
    others = set(trained) - set(lora) - set(project)
    assert all(".mask_decoder." in name or name.endswith("added_rows") for name in others)
    sampler = config.train_dataloader.dataset
    assert sampler.ratios.to_dict() == dict(classes=9, refer=3, vqa=3, reason=1)
    assert config.train_dataloader.batch_size * 8 * config.optim_wrapper.accumulative_counts == 160
