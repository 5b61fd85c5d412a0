"""An adapted LMM with LoRA merged, written by the tool and read by transformers alone."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from multi_task_parts import LORA, move_lora
from tiny import make_batch, make_sample
from transformers import AutoProcessor, LlavaForConditionalGeneration

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.models.merge import merge_checkpoint
from flmm_detseg.structures import CaptureSpec

ROOT = Path(__file__).resolve().parents[2]
PRETRAINED = str(ROOT / "data" / "models" / "tiny_llava")


def write_config(folder: Path, **lmm) -> Path:
    settings = dict(type="flmm_detseg.lmms.LlavaAdapter.from_pretrained", pretrained=PRETRAINED, **lmm)
    heads = dict(language=dict(type="flmm_detseg.heads.LanguageHead"))
    path = folder / "adapted.py"
    Config(dict(model=dict(type="flmm_detseg.models.GroundingLMM", lmm=settings, heads=heads))).dump(path)
    return path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Config, checkpoint and model of a tiny LLaVA whose LoRA has moved."""
    folder = tmp_path_factory.mktemp("adapted")
    config = write_config(folder, lora=LORA)
    model = model_from_config(config, untrained=True, device="cpu")
    move_lora(model)
    torch.save({"state_dict": model.trainable_state_dict()}, folder / "iter_1.pth")
    return config, folder / "iter_1.pth", model


def run_tool(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["merge_lora.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / "merge_lora.py"), run_name="__main__")
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_merged_lmm_is_the_adapted_one_without_this_package(adapted, tmp_path, monkeypatch, capsys):
    config, checkpoint, model = adapted
    out = tmp_path / "deep" / "merged"
    code, text, _ = run_tool(monkeypatch, capsys, config, "--checkpoint", checkpoint, "--out", out)
    assert code == 0
    figures = json.loads(text.splitlines()[-1])
    assert figures["dtype"] == "float32"
    assert figures["merged_layers"] > 20
    # transformers alone
    plain = LlavaForConditionalGeneration.from_pretrained(out)
    assert sum(p.numel() for p in plain.parameters()) == figures["num_parameters"]
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert AutoProcessor.from_pretrained(out).tokenizer("a red star").input_ids
    assert "row" not in (out / "config.json").read_text()
    # and in a config, as `pretrained`
    merged, base = LlavaAdapter.from_pretrained(str(out)), LlavaAdapter.from_pretrained(PRETRAINED)
    inputs = make_batch(merged, [make_sample(0), make_sample(1)]).inputs
    with torch.no_grad():
        wanted, found, old = (
            lmm.encode(inputs, CaptureSpec(logits=True)).logits for lmm in (model.lmm, merged, base)
        )
    for one, other, before in zip(found, wanted, old, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        assert (one - before).abs().max() > 0.1, "LoRA did nothing: the test shows nothing"
    assert merged.generate(make_sample(0), max_new_tokens=8) == model.lmm.generate(
        make_sample(0), max_new_tokens=8
    )


def test_what_cannot_be_merged_is_refused_before_anything_is_written(adapted, tmp_path, monkeypatch, capsys):
    config, checkpoint, _ = adapted
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep.txt").write_text("mine")
    code, _, error = run_tool(monkeypatch, capsys, config, "--checkpoint", checkpoint, "--out", full)
    assert code == 2
    assert "exists already" in error
    assert [path.name for path in full.iterdir()] == ["keep.txt"]
    frozen = write_config(tmp_path)
    with pytest.raises(
        ConfigError, match="has no `lora`, no `added_tokens` and no `parts`; there is nothing"
    ):
        merge_checkpoint(frozen, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    unnamed = Config(dict(model=dict(lmm=dict(type="tiny.tiny_llava"))))
    unnamed.dump(tmp_path / "unnamed.py")
    with pytest.raises(ConfigError, match="names no `pretrained`"):
        merge_checkpoint(tmp_path / "unnamed.py", checkpoint, tmp_path / "out")
