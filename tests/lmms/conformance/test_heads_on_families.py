"""Heads, checkpoints and answers work on every family without knowing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sam_parts import make_refiner
from tiny import make_sample
from tiny_families import FAMILIES, build

from flmm_detseg.heads import (
    DetectionHead,
    PhraseGroundingHead,
    PixelStem,
    SemanticSegHead,
    UNetHead,
    VisionNeck,
)
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec, DenseTargets, Phrase

pytestmark = pytest.mark.parametrize("family", FAMILIES)
HEAD = dict(
    type=PhraseGroundingHead,
    mask_head=dict(type=UNetHead, base_channels=8, num_stages=3, upsample_input=16),
    sam=dict(type=make_refiner),
    text_dim=16,
)


def assemble(family: str, **lmm) -> GroundingLMM:
    adapter = build(family, **lmm)
    torch.manual_seed(0)
    return GroundingLMM(adapter, dict(phrase=HEAD))


def test_phrases_are_learned_and_grounded_at_image_size(family):
    model = assemble(family, lora=dict(llm=dict(r=2)), frozen=False).train()
    samples = [make_sample(0, image_size=(150, 110)), make_sample(1, image_size=(90, 200))]
    losses = model(samples, mode="loss")
    sum(value for name, value in losses.items() if name.startswith("objective.")).backward()
    trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("lora_" in name for name in trained)
    assert all(gradient is not None for gradient in trained.values())
    model.eval()
    for sample, prediction in zip(samples, model.predict(samples), strict=True):
        assert prediction.masks.shape == sample.masks.shape
        assert prediction.scores.isfinite().all()
        (alone,) = model.predict([sample])
        torch.testing.assert_close(prediction.coarse_logits, alone.coarse_logits, rtol=1e-3, atol=1e-4)


def test_what_was_saved_is_loaded_and_predicts_the_same(family, tmp_path):
    model, other = assemble(family).eval(), assemble(family).eval()
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    sample = make_sample(0, image_size=(120, 120))
    (before,), (untrained,) = model.predict([sample]), other.predict([sample])
    assert not torch.equal(before.coarse_logits, untrained.coarse_logits)
    other.load_state_dict(model.state_dict())
    (after,) = other.predict([sample])
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert torch.equal(before.scores, after.scores)


@torch.no_grad()
def test_words_of_an_answer_are_grounded_without_reading_it_again(family):
    model = assemble(family).eval()
    sample = make_sample(0, image_size=(150, 110), prompt="where is the star ?")
    generation = model.lmm.generate_with_states(
        sample, CaptureSpec(attention=True, hidden="all"), max_new_tokens=6
    )
    spans = [span for span in generation.token_offsets if generation.text[slice(*span)].strip()]
    states = model.lmm.states_of_phrases(generation, [Phrase((spans[0],))])
    assert states.attention[0].shape[1:] == (
        model.lmm.attention_channels,
        *generation.inputs.grid.output_grid,
    )


def test_objects_and_label_maps_are_learned_from_images_of_any_size(family):
    lmm = build(family, lora=dict(vision=dict(r=2, target="qkv")), frozen=False)
    neck = dict(
        type=VisionNeck,
        vision_layers=(1, lmm.facts.vision.num_layers),
        channels=8,
        project_channels=8,
        scales=(2, 1),
        gate="static",
        side=dict(type=PixelStem, stride=8, channels=8),
    )
    names = ("star", "ring", "square")
    torch.manual_seed(0)
    heads = dict(
        detection=dict(type=DetectionHead, neck=neck, class_names=names, feat_channels=8, stacked_convs=1),
        segmentation=dict(type=SemanticSegHead, neck=neck, class_names=names, channels=8, rates=(1, 2)),
    )
    model = GroundingLMM(lmm, heads).train()
    samples = [
        replace(make_sample(index, image_size=size), task="joint", dense=dense_targets(size))
        for index, size in enumerate(((150, 110), (90, 200), (150, 110)))
    ]
    losses = model(samples, mode="loss")
    assert losses["detection.loss_bbox"] > 0
    assert losses["segmentation.loss_dice"] > 0
    sum(value for name, value in losses.items() if name.startswith("objective.")).backward()
    trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(gradient.isfinite().all() for gradient in trained.values())
    # Dense heads read one tower; the other one of two is seen by the language model alone.
    assert any("lora_B" in name and gradient.any() for name, gradient in trained.items())
    # A level that no object has the size for keeps its scale.
    own = {
        name: gradient for name, gradient in trained.items() if "lora_" not in name and ".scales." not in name
    }
    assert [name for name, gradient in own.items() if not gradient.any()] == []
    model.eval()
    # Classes at even odds: every level has candidates.
    torch.nn.init.zeros_(model.heads["detection"].fcos.conv_cls.bias)
    for sample, objects, labels in zip(samples, model.detect(samples), model.segment(samples), strict=True):
        height, width = sample.image_size
        assert len(objects.bboxes) > 0
        assert (objects.bboxes >= 0).all()
        assert (objects.bboxes <= torch.tensor([width, height, width, height])).all()
        assert labels.shape == sample.image_size
        (alone,) = model.segment([sample])
        assert (alone == labels).float().mean() > 0.99


def dense_targets(size: tuple[int, int]) -> DenseTargets:
    """Two objects and a label map of two classes."""
    height, width = size
    boxes = np.array([[5, 5, 0.6 * width, 0.7 * height], [0.5 * width, 0.4 * height, width - 4, height - 4]])
    semantic = np.zeros(size, np.uint8)
    semantic[height // 2 :] = 2
    return DenseTargets(boxes_xyxy=boxes.astype(np.float32), labels=np.array([0, 2]), semantic=semantic)
