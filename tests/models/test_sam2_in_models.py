"""SAM 2 wherever a config can name SAM: phrases, masks of boxes, shared parts, checkpoints, the 7B recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from multi_task_parts import HEADS, dense_sample, make_model, objective
from sam2_parts import FIELDS, make_sam2_refiner
from sam_parts import make_refiner
from tiny import make_sample, tiny_llava
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedModel

from flmm_detseg.engine.checks.config_diff import diff_to_base
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.shapes import model_on_meta
from flmm_detseg.refiners import SAM2Refiner

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "llava" / "sam2_llava15_7b_refcoco_png.py"
SAM2 = {"type": make_sam2_refiner}
PHRASE = {**HEADS["phrase"], "text_dim": 16}
DETECTION = {**HEADS["detection"], "score_threshold": 0.0}
FORMS = {
    "lent": dict(heads={"phrase": {**PHRASE, "sam": SAM2}, "detection": DETECTION}, instance_masks=True),
    "shared": dict(
        heads={"phrase": {**PHRASE, "sam": "sam"}, "detection": {**DETECTION, "sam": "sam"}},
        parts={"sam": SAM2},
    ),
}


def build(**changes) -> GroundingLMM:
    return make_model(lmm=tiny_llava(), **changes).eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_step_trains_the_masks_of_phrases_not_of_boxes_and_is_stored(form) -> None:
    model, again = build(**FORMS[form]), build(**FORMS[form])
    refiner = model.heads["phrase"].sam
    assert model.heads["detection"].refiner is refiner
    phrase, boxes = make_sample(0), dense_sample(1, "detection")
    first, (objects,) = model.predict([phrase])[0], model.detect([boxes])
    assert first.mask_logits.shape[1:] == phrase.image_size
    assert objects.masks.shape[1:] == boxes.image_size
    assert len(objects.masks) > 0
    before = refiner.masks_from_boxes([boxes.image], [objects.bboxes])[0]
    encoder = {name: p.clone() for name, p in refiner.image_encoder.named_parameters()}

    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    objective(model, [phrase, boxes]).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad.abs().sum() > 0 for p in refiner.model.mask_decoder.conv_s0.parameters())
    optimizer.step()
    model.eval()
    assert all(torch.equal(p, encoder[name]) for name, p in refiner.image_encoder.named_parameters())
    assert torch.equal(refiner.masks_from_boxes([boxes.image], [objects.bboxes])[0], before)
    after = model.predict([phrase])[0]
    assert not torch.equal(after.mask_logits, first.mask_logits)

    stored = model.trainable_state_dict()
    names = [name for name in stored if "sam." in name]
    place = "parts.sam." if form == "shared" else "heads.phrase.sam."
    assert len(names) > 100
    assert all(
        name.startswith((f"{place}model.prompt_encoder.", f"{place}model.mask_decoder.")) for name in names
    )
    again.load_trainable({name: value.clone() for name, value in stored.items()}, "memory")
    assert torch.equal(again.predict([phrase])[0].mask_logits, after.mask_logits)


def test_weights_of_the_other_sam_are_refused() -> None:
    first, second = (
        build(heads={"phrase": {**PHRASE, "sam": {"type": kind}}})
        for kind in (make_refiner, make_sam2_refiner)
    )
    with pytest.raises(CheckpointError, match=r"missing: heads\.phrase\.sam\.model"):
        second.load_trainable(dict(first.trainable_state_dict()), "memory")


def test_it_builds_by_name_from_sizes() -> None:
    sam = {"type": "SAM2Refiner", "variant": FIELDS}
    model = build(heads={"phrase": {**PHRASE, "sam": sam}})
    assert isinstance(model.heads["phrase"].sam, SAM2Refiner)
    with pytest.raises(ConfigError, match="text_dim=17.*16 channels"):
        build(heads={"phrase": {**PHRASE, "text_dim": 17, "sam": sam}})


def test_the_7b_recipe_changes_sam_alone_and_trains_its_prompts_and_decoder(tmp_path, monkeypatch) -> None:
    changed = diff_to_base(RECIPE)
    assert changed
    assert all(key.startswith("model.heads.phrase.sam.") for key in changed), changed
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096)
    LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000).save_pretrained(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda _: None)
    model = model_on_meta(Config.fromfile(RECIPE), tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = {
        name.removeprefix("heads.phrase."): tuple(value.shape)
        for name, value in model.trainable_state_dict().items()
    }
    prompts = [name for name in shapes if name.startswith("sam.model.prompt_encoder.")]
    decoder = [name for name in shapes if name.startswith("sam.model.mask_decoder.")]
    others = [name for name in shapes if not name.startswith("sam.")]
    assert (len(prompts), len(decoder), len(others)) == (12, 119, 56)
    assert shapes["sam.model.mask_decoder.conv_s0.weight"] == (32, 256, 1, 1)
    assert shapes["text_proj.weight"] == (256, 4096)
    # SAM's decoder without its quality head, the object token, and two convolutions to 32 and 64 channels.
    convolutions = 257 * 32 + 257 * 64
    expected = 4_058_340 - (2 * 257 * 256 + 257 * 4) + 256 + convolutions
    assert sum(torch.Size(shapes[name]).numel() for name in decoder) == expected
