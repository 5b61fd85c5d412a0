from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_parts import GRIDS, PADDED, make_dense_case, make_neck, select, total, with_dense

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.heads import PixelStem, SemanticSegHead
from flmm_detseg.structures import CaptureSpec, DenseTargets

NAMES = ("wall", "sky", "tree")
TEXT = 12
ALL = dict(dice_weight=1.0, lovasz_weight=1.0, ce_weight=1.0, boundary_weight=0.5)


def make_head(neck=None, **changes) -> SemanticSegHead:
    neck = make_neck(scales=(4, 2, 1, 0.5)) if neck is None else neck
    torch.manual_seed(0)
    return SemanticSegHead(neck, NAMES, **{**dict(channels=16), **changes}).eval()


def test_predictions_have_the_original_size():
    head = make_head()
    assert head.capture == CaptureSpec(vision_layers=(3,))
    states, batch = make_dense_case()
    assert head.logits(states, batch).shape == (3, 3, 16, 16)
    for labels, sample in zip(head.predict(states, batch), batch.samples):
        assert labels.shape == sample.image_size
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < 3


@pytest.mark.case("model/nan_prediction")
def test_logits_that_are_no_numbers_name_the_sample(monkeypatch):
    head = make_head()
    states, batch = make_dense_case()
    logits = torch.zeros(3, 3, 16, 16)
    logits[1, 2, 0, 0] = float("nan")
    monkeypatch.setattr(head, "logits", lambda states, batch: logits)
    with pytest.raises(RunError, match=f"^{batch.samples[1].record_id}: the class logits hold NaN"):
        head.predict(states, batch)


@pytest.mark.parametrize("grid", GRIDS)
def test_perfect_logits_come_back_as_the_target(grid, monkeypatch):
    head = make_head()
    states, batch = make_dense_case((grid,))
    targets = head.targets(batch, (56, 56)).long()
    perfect = 10 * F.one_hot(targets.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    monkeypatch.setattr(head, "logits", lambda states, batch: perfect)
    truth = torch.from_numpy(batch.samples[0].dense.semantic).long()
    (labels,) = head.predict(states, batch)
    known = truth != 255
    assert (labels == truth)[known].float().mean() > 0.95


def test_only_the_image_is_learned():
    head = make_head()
    _, batch = make_dense_case((PADDED,))
    targets = head.targets(batch, (16, 16))
    assert targets.dtype == torch.uint8
    assert (targets[0, :4] == 255).all()
    assert (targets[0, 12:] == 255).all()
    assert (targets[0, 5:12, :10] != 255).all()


@pytest.mark.parametrize("loss_stride", [None, 2.0, 14.0])
def test_batch_equals_single_samples(loss_stride):
    head = make_head(loss_stride=loss_stride, **ALL)
    states, batch = make_dense_case()
    alone = [select(states, batch, index) for index in range(3)]
    together = head.loss(states, batch)
    assert set(together) == {
        "loss_dice", "loss_lovasz", "loss_ce", "loss_boundary", "accuracy", "gate_layer3", "gate_entropy"
    }  # fmt: skip
    assert head.num_targets(batch) == 3
    for name, value in together.items():
        expected = torch.stack([head.loss(*case)[name] for case in alone]).mean()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    for labels, case in zip(head.predict(states, batch), alone):
        assert torch.equal(labels, head.predict(*case)[0])


def make_open(neck=None, **changes) -> SemanticSegHead:
    head = make_head(neck, classifier="open", hidden_size=TEXT, **changes)
    head.set_class_embeddings(torch.randn(3, TEXT, generator=torch.Generator().manual_seed(3)))
    return head


def test_open_classes_are_independent_and_exclude_each_other():
    head = make_open()
    states, batch = make_dense_case()
    logits = head.logits(states, batch)
    embeddings = head.open_classifier.embeddings
    more = torch.cat([torch.randn(2, TEXT, generator=torch.Generator().manual_seed(4)), embeddings])
    with head.other_classes(more, ["cat", "dog", *NAMES]):
        wider = head.logits(states, batch)
        torch.testing.assert_close(wider[:, 2:], logits)
        assert wider.shape[1] == 5
        for labels, shares, case in zip(
            head.predict(states, batch), head.class_probabilities(states, batch), range(3), strict=True
        ):
            torch.testing.assert_close(shares.sum(0), torch.ones(labels.shape))
            assert torch.equal(shares.argmax(0), labels)
            (alone,) = head.class_probabilities(*select(states, batch, case))
            torch.testing.assert_close(shares, alone, rtol=1e-4, atol=1e-5)
    assert head.class_names == NAMES
    assert torch.equal(head.logits(states, batch), logits)
    for name in ("embeddings", "bias"):
        assert not any(f"classify.{name}" in key for key in head.state_dict())
    assert {"decoder.classify.weight", "decoder.classify.bias"} <= set(make_head().state_dict())
    other = make_open(make_neck(scales=(4, 2, 1, 0.5)), channels=16)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.logits(states, batch), logits)


def test_open_classes_that_cannot_be():
    head = make_open()
    with pytest.raises(ConfigError, match="1 semantic classes; give 2 to 255"):
        head.set_class_embeddings(torch.zeros(1, TEXT), ["cat"])
    with pytest.raises(ConfigError, match="2 class embeddings for 3 class names"):
        head.set_class_embeddings(torch.zeros(2, TEXT))
    with pytest.raises(ConfigError, match="this head's classes are fixed"):
        make_head().set_class_embeddings(torch.zeros(3, TEXT))
    with pytest.raises(ConfigError, match="an open classifier needs `hidden_size`"):
        make_head(classifier="open")
    with pytest.raises(ConfigError, match="'ajar' is none of closed, open"):
        make_head(classifier="ajar")


@pytest.mark.parametrize("make", [make_head, make_open])
def test_every_trainable_tensor_gets_a_gradient(make):
    neck = make_neck(scales=(4, 2, 1, 0.5), gate="spatial", project_channels=8, side=PixelStem(4, 8))
    head = make(neck).train()
    total(head.loss(*make_dense_case())).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_tiny_set_is_learned():
    head = make_head(**ALL).train()
    states, batch = make_dense_case()
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        total(head.loss(states, batch)).backward()
        optimizer.step()
    for labels, sample in zip(head.eval().predict(states, batch), batch.samples):
        truth = torch.from_numpy(sample.dense.semantic).long()
        for index in range(3):
            known = truth != 255
            first, second = (labels == index) & known, truth == index
            assert (first & second).sum() / (first | second).sum() > 0.75


def test_convolutions_are_depthwise_separable():
    decoder = make_head().decoder
    wide = [m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
    assert len(wide) == 3 + 3  # merges of four levels, atrous branches of rate 3, 6, 9
    assert all(m.groups == m.in_channels for m in wide)
    assert sorted(m.dilation[0] for m in wide) == [1, 1, 1, 3, 6, 9]


def test_half_precision_runs():
    head = make_head(**ALL)
    states, batch = make_dense_case()
    expected = head.loss(states, batch)
    for name, value in head.to(torch.bfloat16).loss(states, batch).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=0.05)


def test_images_without_known_pixels_count_as_zero():
    head = make_head(**ALL).train()
    states, batch = make_dense_case((PADDED,))
    unknown = DenseTargets(semantic=np.full((30, 60), 255, np.uint8))
    figures = head.loss(states, with_dense(batch, 0, unknown))
    assert all(figures[name] == 0 for name in figures if "loss" in name)
    total(figures).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize(("dense", "message"), [
    (None, "no semantic map"),
    (DenseTargets(labels=np.zeros(1)), "no semantic map"),
    (DenseTargets(semantic=np.zeros((5, 5), np.uint8)), r"\(5, 5\), image of \(80, 40\)"),
    (DenseTargets(semantic=np.full((80, 40), 3, np.uint8)), "label 3.*3 classes"),
])  # fmt: skip
def test_targets_that_cannot_be_used_name_the_record(dense, message):
    states, batch = make_dense_case()
    with pytest.raises(DataError, match=f"case/1: .*{message}"):
        make_head().loss(states, with_dense(batch, 1, dense))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(rates=()), "rates"),
    (dict(dice_weight=0.0, lovasz_weight=0.0), "must be positive"),
])  # fmt: skip
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_head(**changes)
    with pytest.raises(ConfigError, match="1 semantic classes"):
        SemanticSegHead(make_neck(), ["one"])
