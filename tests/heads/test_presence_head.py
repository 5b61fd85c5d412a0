from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from presence_parts import some_absent, tiny_model
from tiny import make_sample, mixed_samples

from flmm_detseg.errors import CheckpointError, ConfigError, DataError, RunError
from flmm_detseg.heads import PresenceHead
from flmm_detseg.heads.presence_head import PresenceEvidence
from flmm_detseg.heads.presence_score import fit_sigmoid
from flmm_detseg.structures import HiddenRows

CHANNELS, HIDDEN, VISION = 5, 8, 6


def make_presence(seed: int = 0, **changes) -> PresenceHead:
    torch.manual_seed(seed)
    settings = dict(
        hidden_layers=(1, 3), vision_layers=(0, 2), hidden_size=HIDDEN, vision_channels=VISION,
        in_channels=CHANNELS, width=16, num_heads=2, cells=4,
    )  # fmt: skip
    return PresenceHead(**{**settings, **changes}).eval()


def make_evidence(counts=(2, 0, 3), sizes=((4, 4), (4, 4), (3, 5)), seed: int = 0) -> list[PresenceEvidence]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    found = []
    for count, (rows, cols) in zip(counts, sizes, strict=True):
        # Phrases of one token, two tokens, ...
        ids = torch.arange(count).repeat_interleave(torch.arange(1, count + 1))
        found.append(
            PresenceEvidence(
                HiddenRows(draw(3, len(ids), HIDDEN), ids),
                draw(2 * VISION, rows, cols),
                draw(count, 2 * rows, 2 * cols),
                draw(count, CHANNELS, rows, cols).sigmoid() / 20,
                -draw(len(ids), 2).exp(),
            )
        )
    return found


def test_a_batch_is_its_samples_one_by_one():
    head, evidence = make_presence(), make_evidence()
    together = head(evidence)
    assert [len(logits) for logits in together] == [2, 0, 3]
    for item, logits in zip(evidence, together, strict=True):
        torch.testing.assert_close(head([item])[0], logits, rtol=1e-5, atol=1e-6)


def test_it_reads_words_attention_mask_and_image():
    head, (item,) = make_presence(reads_likelihood=True), make_evidence((2,), ((4, 4),))
    before = head([item])[0]
    changes = {
        "hidden": replace(item.hidden, states=item.hidden.states.flip(0)),
        "vision": item.vision.flip(-1),
        "mask_logits": item.mask_logits.flip(-1),
        "attention": item.attention.flip(1),
        "likelihood": item.likelihood.flip(0),
    }
    for name, value in changes.items():
        assert (head([replace(item, **{name: value})])[0] - before).abs().max() > 1e-4, name
    # Layers that it did not ask for are not read.
    other = item.hidden.states.clone()
    other[1] = 0
    torch.testing.assert_close(head([replace(item, hidden=replace(item.hidden, states=other))])[0], before)


def test_attention_may_be_left_out():
    (item,) = make_evidence((2,), ((4, 4),))
    head = make_presence(reads_attention=False)
    torch.testing.assert_close(head([item]), head([replace(item, attention=None)]))


def test_likelihood_is_read_where_it_is_asked_for_and_has_a_floor():
    (item,) = make_evidence((2,), ((4, 4),))
    assert not make_presence().state_dict().keys() & {"likelihood_proj.weight"}
    torch.testing.assert_close(
        make_presence()([item]), make_presence()([replace(item, likelihood=None)]), rtol=0, atol=0
    )
    head = make_presence(reads_likelihood=True)
    unlikely, impossible = (replace(item, likelihood=torch.full((3, 2), value)) for value in (-20.0, -1e9))
    torch.testing.assert_close(head([unlikely]), head([impossible]), rtol=0, atol=0)
    assert all(torch.isfinite(head([impossible])[0]))


def test_every_tensor_learns():
    head = make_presence(reads_likelihood=True).train()
    torch.cat(head(make_evidence())).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_layers=()), "hidden_layers"),
        (dict(width=20, num_heads=3), "multiple"),
        (dict(keep_present=1.0), "keep_present"),
        (dict(cells=0), "cells"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_presence(**changes)


def test_calibration_is_the_best_sigmoid_and_keeps_the_order():
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(400, generator=generator) < 0.6
    logits = 6 * (there.float() - 0.2) + 3 * torch.randn(400, generator=generator)
    slope, bias = fit_sigmoid(logits.double(), there)
    # The same by gradient descent.
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    positives = int(there.sum())
    target = torch.where(there, (positives + 1) / (positives + 2), 1 / (402 - positives)).double()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(weights[0] * logits.double() + weights[1], target)
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose([slope, bias], weights.tolist(), atol=1e-3)

    head = make_presence(keep_present=0.9)
    assert (head.fitted, np.isnan(head.fitted_threshold)) == (False, True)
    head.calibrate(logits, there)
    assert head.fitted_threshold == float(head.threshold)
    found = head.probability(logits)
    assert float(head.temperature) == pytest.approx(1 / slope)
    assert torch.equal(found.argsort(), logits.argsort())
    assert (found[there] >= head.threshold).float().mean() == pytest.approx(0.9, abs=0.01)


def test_what_cannot_be_calibrated_is_refused():
    head, logits = make_presence(), torch.linspace(-1, 1, 10)
    with pytest.raises(DataError, match="10 are there"):
        head.calibrate(logits, torch.ones(10, dtype=torch.bool))
    with pytest.raises(RunError, match="do not grow"):
        head.calibrate(logits, logits < 0)


def test_only_the_presence_head_learns():
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(name.startswith("heads.phrase.presence.") for name in trainable)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(2):
        optimizer.zero_grad()
        losses = model.loss(some_absent(mixed_samples()))
        loss, figures = model.parse_losses(losses)
        loss.backward()
        optimizer.step()
    assert set(figures) >= {"phrase.loss_presence", "phrase.presence_accuracy"}
    assert not any("mask" in name or "dice" in name for name in figures)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(trainable)


def test_masks_are_those_without_a_presence_head():
    plain, model = tiny_model(presence=False), tiny_model()
    model.load_trainable({**model.trainable_state_dict(), **plain.trainable_state_dict()}, "plain")
    samples = [replace(sample, masks=None) for sample in mixed_samples()]
    for with_it, without in zip(model.eval().predict(samples), plain.eval().predict(samples), strict=True):
        assert without.presence is None
        assert with_it.presence.shape == with_it.scores.shape
        assert torch.equal(with_it.coarse_logits, without.coarse_logits)
        # Torch has other kernels for parameters that are not trained, SAM's here.
        torch.testing.assert_close(with_it.mask_logits, without.mask_logits, rtol=0, atol=1e-5)


def test_many_phrases_are_read_in_parts():
    model = tiny_model().eval()
    sample = make_sample(3, num_phrases=4)
    (whole,) = model.predict([sample])
    model.heads["phrase"].phrases_per_pass = 3
    (parts,) = model.predict([sample])
    torch.testing.assert_close(parts.presence, whole.presence, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_gives_the_same_presence_and_holds_the_masks_parts():
    model, other = tiny_model(0).eval(), tiny_model(1).eval()
    model.heads["phrase"].presence.calibrate(
        torch.tensor([3.0, 1.0, -2.0, 0.5]), torch.tensor([1, 1, 0, 0]).bool()
    )
    samples = mixed_samples()
    state = model.trainable_state_dict()
    assert {"heads.phrase.presence.threshold", "heads.phrase.text_proj.weight"} <= set(state)
    other.load_trainable(state, "the first")
    assert other.heads["phrase"].presence_threshold == model.heads["phrase"].presence_threshold
    for first, second in zip(model.predict(samples), other.predict(samples), strict=True):
        assert torch.equal(first.presence, second.presence)
        assert torch.equal(first.mask_logits, second.mask_logits)


def test_a_run_starts_from_heads_without_one(tmp_path):
    plain = tiny_model(presence=False)
    file = tmp_path / "heads.pth"
    torch.save({"state_dict": plain.trainable_state_dict()}, file)
    model = tiny_model(1, init_from=[str(file)], new_parts=["heads.phrase.presence."])
    for name, tensor in plain.trainable_state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match="presence"):
        tiny_model(1, init_from=[str(file)])


def test_training_needs_targets():
    with pytest.raises(DataError, match="no target masks"):
        tiny_model().loss([make_sample(0, with_masks=False)])


def test_with_trained_masks_both_learn():
    model = tiny_model(freeze=())
    _, figures = model.parse_losses(model.loss(mixed_samples()))
    assert {"phrase.loss_mask", "phrase.sam_loss_dice", "phrase.loss_presence"} <= set(figures)
