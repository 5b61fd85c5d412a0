"""What heads read of an image, on tiny models with all heads; the page about it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from multi_task_parts import HEADS, NECK, make_model
from PIL import Image

from flmm_detseg.commands import explain
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads.task_rows import TASKS
from flmm_detseg.inference.feature_page import feature_page
from flmm_detseg.inference.features import read_features
from flmm_detseg.structures import CaptureSpec, Sample
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
ROOT = Path(__file__).resolve().parents[2]


def model_with(gate: str):
    neck = {**NECK, "gate": gate}
    heads = {**HEADS, "detection": {**HEADS["detection"], "neck": neck}}
    return make_model(heads=heads).eval()


def test_pyramids_and_shares_are_those_of_the_necks():
    model = model_with("task")
    with torch.no_grad():  # far from its start, so that tasks differ
        model.heads["detection"].neck.gate.output.weight.normal_()
    features = read_features(model, IMAGE)
    assert list(features.tower) == [1, 2]
    assert list(features.pyramids) == ["detection", "segmentation"]
    found = features.pyramids["detection"]
    assert set(found.shares) == set(TASKS)
    assert len({tuple(np.round(shares, 4)) for shares in found.shares.values()}) > 1
    assert all(sum(shares) == pytest.approx(1, abs=1e-5) for shares in found.shares.values())
    (batch,) = [model.prepare([Sample("image", IMAGE, "", (), task="detection")])]
    with torch.no_grad():
        states = model.lmm.encode(batch.inputs, CaptureSpec(vision_layers=(1, 2)))
        neck = model.heads["detection"].neck
        expected = neck(states, batch)
        figures = neck.statistics()
    assert found.shares["detection"] == pytest.approx([figures["gate_layer1"], figures["gate_layer2"]])
    (frame,) = neck.frames(batch)
    for maps, wanted in zip(found.levels, expected, strict=True):
        np.testing.assert_allclose(maps, frame.crop(wanted[0]).numpy(), atol=1e-5)
    # The image is wide: the rows of the padding are cut off.
    assert found.levels[0].shape[1] < found.levels[0].shape[2]
    assert features.pyramids["segmentation"].shares == {"segmentation": (1.0,)}


def test_a_page_of_all_heads(tmp_path):
    model = model_with("static")
    out = tmp_path / "new" / "page.html"
    figures = feature_page(model, IMAGE, out, title="t", caption="a red star .", phrases=["a red star"])
    text = out.read_text()
    assert text.count("<img") == 1 + 2 + 2 * (2 + 1) + 2
    assert 'src="http' not in text
    assert figures["phrases"] == ["a red star"]
    assert len(figures["gate_shares"]["detection"]["detection"]) == 2


def test_a_model_without_a_phrase_head(tmp_path):
    model = make_model(heads={"segmentation": HEADS["segmentation"]}).eval()
    assert feature_page(model, IMAGE, tmp_path / "page.html", title="t")["phrases"] == []
    with pytest.raises(DataError, match="no phrase head"):
        feature_page(model, IMAGE, tmp_path / "page.html", title="t", question="what ?")


def _run(tmp_path: Path, *words: str) -> dict:
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    parser = ArgumentParser()
    explain.add_arguments(parser)
    return explain.run(
        parser.parse_args([str(tmp_path / "image.png"), "--out", str(tmp_path / "p.html"), *words])
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "a.pth"], "belong to --features"),
        (["--features", TINY_CONFIG, "--lmm", "x"], "the config of --features says it"),
        (["--features", TINY_CONFIG, "--caption", "a ring ."], "needs the phrases"),
    ],
)
def test_arguments_that_do_not_fit(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        _run(tmp_path, *words)


def test_the_page_does_not_replace_the_config(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("model = None")
    with pytest.raises(ConfigError, match="is an input"):
        _run(tmp_path, "--features", str(config), "--out", str(config))
    assert config.read_text() == "model = None"


@pytest.mark.slow
@pytest.mark.long
def test_the_command_on_the_shipped_heads(tmp_path):
    words = ["--caption", "a white ring .", "--phrase", "a white ring"]
    figures = _run(tmp_path, "--features", TINY_CONFIG, "--checkpoint", TINY_HEADS, *words)
    text = (tmp_path / "p.html").read_text()
    assert figures["tower_layers"][-1] == 5
    assert "layers in the text prompt" in text
    assert "Attention" in text
