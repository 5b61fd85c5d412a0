"""The 7B recipes as shapes on the meta device, and the import of published checkpoints."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

from flmm_detseg.cache import CachedLMM, FrameDifference
from flmm_detseg.engine import GroupedAdamW
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.experiments.plan import Run, read_plan
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.models.checkpoint import PHRASE_PREFIX, load_checkpoint
from flmm_detseg.models.shapes import import_flmm_checkpoint, model_on_meta

ROOT = Path(__file__).resolve().parents[2]
LLAVA = ROOT / "configs" / "llava" / "frozen_llava15_7b_refcoco_png.py"
TINY = ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py"
NEXT = ROOT / "configs" / "llava_next" / "frozen_llava_next_vicuna_7b_refcoco_png.py"
BUFFER = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def write_lmm_config(folder: Path, kind: type) -> Path:
    """``config.json`` with the sizes of the published 7B models."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096)
    kind(vision_config=vision, text_config=text, image_token_index=32000).save_pretrained(folder)
    return folder / "config.json"


@pytest.fixture(scope="module")
def llava_config(tmp_path_factory) -> Path:
    return write_lmm_config(tmp_path_factory.mktemp("llava"), LlavaConfig)


@pytest.fixture(scope="module")
def published(llava_config) -> dict[str, torch.Tensor]:
    """A state dict as F-LMM publishes it: unprefixed names, and the buffer that DeepSpeed leaves in."""
    model = model_on_meta(Config.fromfile(LLAVA), llava_config)
    names = {
        name.removeprefix(PHRASE_PREFIX): value.shape for name, value in model.trainable_state_dict().items()
    }
    tensors = {name: torch.full((1,), 0.5).expand(shape) for name, shape in names.items()}
    return {**tensors, BUFFER: torch.zeros(2, 128)}


def test_the_7b_recipe_trains_the_192_published_tensors(llava_config):
    model = model_on_meta(Config.fromfile(LLAVA), llava_config)
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = {
        name.removeprefix(PHRASE_PREFIX): tuple(v.shape) for name, v in model.trainable_state_dict().items()
    }
    assert len(shapes) == 192
    groups = (
        "text_layer_weights",
        "text_proj.",
        "mask_head.",
        "sam.model.prompt_encoder.",
        "sam.model.mask_decoder.",
    )
    assert [sum(name.startswith(group) for name in shapes) for group in groups] == [1, 2, 53, 16, 120]
    assert shapes["mask_head.encoder.0.0.convs.0.conv.weight"] == (64, 1024, 3, 3)
    assert shapes["text_layer_weights"] == (32,)
    assert shapes["text_proj.weight"] == (256, 4096)


def test_llava_next_has_two_levels_of_channels(tmp_path):
    config = write_lmm_config(tmp_path, LlavaNextConfig)
    shapes = model_on_meta(Config.fromfile(NEXT), config).trainable_state_dict()
    assert shapes["heads.phrase.mask_head.encoder.0.0.convs.0.conv.weight"].shape == (64, 2048, 3, 3)
    assert len(shapes) == 192


def test_a_config_of_another_family_or_none_is_named(tmp_path, llava_config):
    with pytest.raises(ConfigError, match=r"'llava'.*'llava_next'"):
        model_on_meta(Config.fromfile(NEXT), llava_config)
    with pytest.raises(ConfigError, match="--lmm-config"):
        model_on_meta(Config.fromfile(LLAVA), tmp_path / "none.json")


@pytest.mark.parametrize("form", ["plain", "folder"])
def test_the_import_tool_takes_published_files(form, published, llava_config, tmp_path, monkeypatch, capsys):
    source = tmp_path / "iter_95080.pth"
    if form == "plain":
        torch.save(published, source)
    else:
        source.mkdir()
        torch.save({"module": published, "ds_version": "0.14"}, source / "mp_rank_00_model_states.pt")
    out = tmp_path / "out" / "ours.pth"
    arguments = [str(source), str(LLAVA), "--out", str(out), "--lmm-config", str(llava_config)]
    monkeypatch.setattr(sys, "argv", ["import", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "import_flmm_checkpoint.py"), run_name="__main__")
    assert ended.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["num_tensors"] == 192
    stored = load_checkpoint(out)
    assert set(stored) == {PHRASE_PREFIX + name for name in published if name != BUFFER}


def test_shapes_are_made_without_a_warning():
    """torch warns of each tensor that is copied to the meta device: 202 lines for the tiny recipe."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = model_on_meta(Config.fromfile(TINY))
    assert all(value.is_meta for value in model.trainable_state_dict().values())


def test_wrong_keys_and_shapes_are_listed_and_nothing_is_written(published, llava_config, tmp_path):
    broken = dict(published)
    broken["text_proj.weight"] = torch.zeros(256, 2048)
    broken["mask_head.conv_segg.bias"] = broken.pop("mask_head.conv_seg.bias")
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError) as error:
        import_flmm_checkpoint(tmp_path / "broken.pth", LLAVA, tmp_path / "out.pth", llava_config)
    message = str(error.value)
    assert "1 missing: heads.phrase.mask_head.conv_seg.bias" in message
    assert (
        "unexpected: mask_head.conv_segg.bias" in message
        or "heads.phrase.mask_head.conv_segg.bias" in message
    )
    assert "heads.phrase.text_proj.weight (256, 2048) (model: (256, 4096))" in message
    assert not (tmp_path / "out.pth").exists()


def test_stage_2_of_the_7b_chain_finds_all_it_needs_in_stage_1(llava_config):
    """Every trainable tensor of the joint model but LoRA is in exactly one of the heads' own trainings."""
    plan = read_plan(ROOT / "configs" / "llava" / "detseg_stages_7b.py")
    heads, joint, stability = plan.stages
    assert joint.runs[0].init_from == tuple(run.name for run in heads.runs)
    assert stability.runs[0].init_from == ("joint",)

    def trained(run: Run) -> dict[str, tuple[int, ...]]:
        model = model_on_meta(Config.fromfile(ROOT / run.config), llava_config)
        groups = Config.fromfile(ROOT / run.config).optim_wrapper.optimizer
        if groups.type is GroupedAdamW:
            GroupedAdamW(**{**{k: v for k, v in groups.items() if k != "type"}, "params": model.parameters()})
        return {name: tuple(value.shape) for name, value in model.trainable_state_dict().items()}

    parts = [trained(run) for run in heads.runs]
    assert all(parts)
    assert sum(map(len, parts)) == len({name for part in parts for name in part})
    whole = trained(joint.runs[0])
    known = {name: shape for part in parts for name, shape in part.items()}
    assert joint.runs[0].new_parts == ("lmm.",)
    assert {name: shape for name, shape in whole.items() if not name.startswith("lmm.")} == known
    assert sum(name.startswith("lmm.") for name in whole) > 200
    assert trained(stability.runs[0]) == whole


def test_the_7b_chain_of_the_background_cache_fits_together(llava_config):
    plan = read_plan(ROOT / "configs" / "cache" / "cached_llava15_7b_stages.py")
    first, second = (stage.runs[0] for stage in plan.stages)
    configs = [Config.fromfile(ROOT / run.config) for run in (first, second)]
    models = [model_on_meta(config, llava_config) for config in configs]
    for model, config in zip(models, configs, strict=True):
        assert isinstance(model.lmm, CachedLMM)
        assert all(parameter.is_meta for parameter in model.parameters())
        optimizer = config.optim_wrapper.optimizer
        GroupedAdamW(**{**{k: v for k, v in optimizer.items() if k != "type"}, "params": model.parameters()})
    known, whole = (
        {name: tuple(value.shape) for name, value in model.trainable_state_dict().items()} for model in models
    )
    assert known["lmm.separators"] == (4, 4096)
    assert {name.split(".")[1] for name in known} == {
        "separators",
        "background_projector",
        "object_projector",
    }
    # Everything else of the second stage is new, and is named as such.
    new = {name for name in whole if name not in known}
    assert {name: shape for name, shape in whole.items() if name not in new} == known
    assert second.init_from == (first.name,)
    assert len(new) > 200
    assert all(name.startswith(second.new_parts) and ".lora_" in name for name in new)
    # Serving takes the second stage's checkpoint.
    serving = model_on_meta(
        Config.fromfile(ROOT / "configs" / "cache" / "cached_llava15_7b_screens.py"), llava_config
    )
    assert set(serving.trainable_state_dict()) == set(whole)
    assert isinstance(serving.lmm.partitioner.source, FrameDifference)
    assert serving.lmm.layout.num_patches == 576


def test_a_wrapped_lmm_that_is_not_named_by_from_pretrained_is_refused(llava_config):
    config = Config.fromfile(ROOT / "configs" / "cache" / "cached_llava15_7b.py")
    config.model.lmm.lmm.type = LlavaAdapter.from_config
    with pytest.raises(ConfigError, match=r"`model\.lmm\.lmm\.type`"):
        model_on_meta(config, llava_config)
