"""The tiny recipes of added parts: a few steps teach something, change nothing else, and can be stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.tinyworld import make_scene
from flmm_detseg.datasets.tinyworld.region_questions import region_questions, without_regions
from flmm_detseg.lmms import LlavaAdapter
from flmm_detseg.models.checkpoint import lmm_meta
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.structures import CaptureSpec

ROOT = Path(__file__).resolve().parents[3]
LOGITS = CaptureSpec(logits=True)
CASES = {
    "tiny/region_questions": ("lmm.parts.regions.", region_questions),
    "ablations/sampled_regions": ("lmm.parts.regions.", region_questions),
    "tiny/routed_projector": (
        "lmm.parts.routed.copies.",
        lambda *scene: [
            {**without_regions(line), "modalities": [("rgb", "depth")[index % 2]]}
            for index, line in enumerate(region_questions(*scene))
        ],
    ),
    "tiny/own_projector": (
        "lmm.parts.projector.copies.",
        lambda *scene: list(map(without_regions, region_questions(*scene))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_few_steps_teach_and_leave_the_lmm_as_it_was(name, tmp_path):
    prefix, questions = CASES[name]
    lines = []
    for index in range(3):
        scene = make_scene(5, index, "train")
        Image.fromarray(scene.image).save(tmp_path / f"{index}.png")
        lines += questions(scene, index, f"{index}.png", 5)
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = list(QuestionDataset(str(tmp_path / "questions.jsonl"), str(tmp_path)))[:12]
    config = ROOT / "configs" / f"{name}.py"
    torch.manual_seed(0)
    model = model_from_config(config, untrained=True, device="cpu").train()
    before = model.frozen_fingerprint()
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(key.startswith(prefix) for key in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss, _ = model.parse_losses(model(samples, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert model.frozen_fingerprint() == before

    plain = LlavaAdapter.from_pretrained(str(ROOT / "data" / "models" / "tiny_llava"))
    item = plain.prepare(replace(samples[0], prompt="what colour is this ?", regions=()))
    with torch.no_grad(), model.lmm.base_mode():
        (inside,) = model.lmm.encode([item], LOGITS).logits
    with torch.no_grad():
        assert torch.equal(inside, plain.encode([item], LOGITS).logits[0])

    file = tmp_path / "iter_8.pth"
    torch.save({"state_dict": model.trainable_state_dict(), "meta": lmm_meta(model.lmm)}, file)
    again, model = model_from_config(config, file, device="cpu").eval(), model.eval()
    items = [model.lmm.prepare(sample) for sample in samples[:3]]
    with torch.no_grad():
        for ours, theirs in zip(
            model.lmm.encode(items, LOGITS).logits, again.lmm.encode(items, LOGITS).logits, strict=True
        ):
            assert torch.equal(ours, theirs)
