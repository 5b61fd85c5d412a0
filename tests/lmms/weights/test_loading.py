from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file, save_file
from tiny import make_sample, tiny_llava, tiny_llava_next
from transformers import CLIPImageProcessor

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter, RowSettings
from flmm_detseg.lmms.load_lmm import load_lmm
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import CaptureSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA in hub layout."""
    path = tmp_path_factory.mktemp("hub") / "tiny"
    adapter = tiny_llava()
    adapter.model.save_pretrained(path)
    adapter.processor.tokenizer.save_pretrained(path)
    CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2]).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_round_trip_gives_the_same_states(folder):
    loaded = LlavaAdapter.from_pretrained(str(folder), rows=dict(merge="max", layers=[0, 2]), max_length=99)
    assert loaded.processor.settings.image_mean == (0.5, 0.4, 0.3)
    assert loaded.processor.settings.max_length == 99
    assert loaded.processor.image_token == "<image>"
    assert loaded.attention_channels == 8
    original = tiny_llava(rows=dict(merge="max", layers=[0, 2]))
    item = loaded.prepare(make_sample())
    ours, theirs = (adapter.encode([item], CaptureSpec(attention=True)) for adapter in (loaded, original))
    assert torch.equal(ours.attention[0], theirs.attention[0])
    assert LlavaAdapter.from_pretrained(str(folder)).processor.settings.max_length == 1024
    assert LlavaAdapter.from_pretrained(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_next_round_trip(tmp_path):
    adapter = tiny_llava_next()
    adapter.model.save_pretrained(tmp_path)
    adapter.processor.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    loaded = LlavaNextAdapter.from_pretrained(str(tmp_path), prompt_template="mistral")
    assert loaded.processor.pinpoints == adapter.processor.pinpoints
    item = adapter.prepare(make_sample())
    ours, theirs = (one.encode([item], CaptureSpec(attention=True)) for one in (loaded, adapter))
    assert torch.equal(ours.attention[0], theirs.attention[0])


def test_a_llava_next_over_mistral_is_asked_in_its_own_words(tmp_path):
    adapter = tiny_llava_next()
    adapter.model.save_pretrained(tmp_path)
    adapter.processor.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    assert load_lmm(str(tmp_path), device="cpu").processor.settings.prompt_template == "vicuna"
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["text_config"]["model_type"] = "mistral"  # the same tensors
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for given, expected in ((None, "mistral"), ("vicuna", "vicuna")):
        loaded = load_lmm(str(tmp_path), device="cpu", prompt_template=given)
        assert loaded.processor.settings.prompt_template == expected


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing/here", "data/models/absent"])
def test_a_wrong_path_says_where_it_looked(name):
    with pytest.raises(ConfigError, match="no such folder.*put the model there"):
        LlavaAdapter.from_pretrained(name)


def test_missing_files_are_named(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="preprocessor_config.json"):
        LlavaAdapter.from_pretrained(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        LlavaAdapter.from_pretrained(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match="no config.json"):
        LlavaAdapter.from_pretrained(str(copy))
    with pytest.raises(ConfigError, match="is a file"):
        LlavaAdapter.from_pretrained(str(copy / "tokenizer.json"))


def test_missing_tokenizer_is_an_error(copy):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)  # transformers 5 writes no map of special tokens
    with pytest.raises(ConfigError, match="tokenizer"):
        LlavaAdapter.from_pretrained(str(copy))


def test_weights_that_do_not_fit_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    key = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    changed = {name: value for name, value in weights.items() if name != key}
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing_keys.*layers\.1\.mlp\.up_proj"):
        LlavaAdapter.from_pretrained(str(copy))
    save_file(
        {**weights, key: weights[key][:5].clone()}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"mismatched_keys.*layers\.1\.mlp\.up_proj"):
        LlavaAdapter.from_pretrained(str(copy))
    save_file(
        {**weights, "extra.weight": torch.ones(2)}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"unexpected_keys.*extra\.weight"):
        LlavaAdapter.from_pretrained(str(copy))


def test_damaged_files_are_errors(copy):
    (copy / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        LlavaAdapter.from_pretrained(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        LlavaAdapter.from_pretrained(str(copy))


def test_a_model_of_another_family_is_an_error(copy):
    with pytest.raises(ConfigError, match="'llava'.*'llava_next'"):
        LlavaNextAdapter.from_pretrained(str(copy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dtype="int8"), "dtype"),
        (dict(rows=dict(layer=[1])), r"unknown keys \['layer'\]"),
        (dict(prompt_template="alpaca"), "prompt_template"),
    ],
)
def test_bad_arguments_are_config_errors(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        LlavaAdapter.from_pretrained(str(folder), **arguments)


def test_pickled_weights_are_not_read(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        LlavaAdapter.from_pretrained(str(copy))


def test_config_fields_may_be_a_plain_dict(folder):
    fields = json.loads((folder / "config.json").read_text())
    adapter = LlavaAdapter.from_config(fields, tokenizer=str(folder))
    assert adapter.attention_channels == 12
    assert adapter.prepare(make_sample()).grid.output_grid == (4, 4)


CONFIG = """
from mmengine.config import read_base
from flmm_detseg.lmms import LlavaAdapter
model = dict(lmm=dict(type=LlavaAdapter.from_pretrained, pretrained="{folder}", rows=dict(merge="mean", layers=[0])))
"""
CHILD = """
from mmengine.config import read_base
with read_base():
    from .parent import *
model.update(lmm=dict(rows=dict(merge="max")))
"""


def test_built_from_a_lazy_config_and_its_dump(folder, tmp_path):
    (tmp_path / "parent.py").write_text(CONFIG.format(folder=folder))
    (tmp_path / "child.py").write_text(CHILD)
    config = Config.fromfile(tmp_path / "child.py")
    config.dump(tmp_path / "dumped.py")
    for loaded in (config, Config.fromfile(tmp_path / "dumped.py")):
        adapter = MODELS.build(loaded.model.lmm)
        assert type(adapter) is LlavaAdapter
        assert adapter.rows == RowSettings(merge="max", layers=[0])


def test_registered_by_name():
    assert MODELS.get("LlavaAdapter") is LlavaAdapter
    assert MODELS.get("LlavaNextAdapter") is LlavaNextAdapter


def test_constructors_name_every_argument():
    for build in (LlavaAdapter, LlavaAdapter.from_pretrained, LlavaNextAdapter.from_config):
        kinds = {parameter.kind for parameter in inspect.signature(build).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
