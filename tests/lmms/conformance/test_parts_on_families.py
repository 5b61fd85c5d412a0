"""Modules added to every family: regions as tokens, a projector of its own, and the untouched model without them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from same_states import EVERYTHING, assert_same
from test_conformance import gathered, samples
from tiny_families import FAMILIES, build

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.added.lmm_part import parts_off
from flmm_detseg.structures import CaptureSpec, Region

pytestmark = pytest.mark.parametrize("family", FAMILIES)
PROJECTOR = dict(projector=dict(type="OwnProjector"))
PARTS = dict(regions=dict(type="RegionTokens", layers=(-1, 1)), **PROJECTOR)
LOGITS = CaptureSpec(logits=True)


def with_parts(family: str, **arguments):
    lmm = build(family, parts=PARTS, **arguments)
    reference = build(family)
    weights = dict(reference.model.named_parameters())
    with torch.no_grad():
        for name, weight in lmm.model.named_parameters():
            weight.copy_(weights[name.replace(".base_layer.", ".")])
        for copied, own in zip(lmm.parts["projector"].copies, projectors(lmm), strict=True):
            copied.load_state_dict(own.state_dict())
    return lmm.eval(), reference


def projectors(lmm):
    return [lmm.model.get_submodule(f"{path}.base_layer") for path in lmm.parts["projector"]._paths]


def pointing():
    """Four samples about two images; the same words point at different regions."""
    given = samples()
    size = given[0].image_size
    mask = np.zeros(size, bool)
    mask[10:60, 20:90] = True
    regions = [
        (Region(box_xyxy=(5, 5, 60, 70)), Region(point_xy=(80.0, 100.0))),
        (Region(mask=mask), Region(box_xyxy=(50, 90, 110, 150))),
    ]
    first = [
        replace(
            sample,
            prompt="is <region> left of <region> ?",
            regions=pair,
            image_id="shared",
            image=given[0].image,
        )
        for sample, pair in zip(given[:2], regions)
    ]
    other = replace(given[3], prompt="what is <region> ?", regions=(Region(box_xyxy=(0, 0, 30, 40)),))
    return [*first, other, given[2]]


@torch.no_grad()
def test_in_base_mode_it_is_the_untouched_model_bit_for_bit(family):
    lmm, reference = with_parts(family)
    for weight in lmm.parts.parameters():
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    items = [lmm.prepare(sample) for sample in samples()[:2]]
    expected, adapted = reference.encode(items, EVERYTHING), lmm.encode(items, EVERYTHING)
    with lmm.base_mode():
        inside = lmm.encode(items, EVERYTHING)
        answer = lmm.generate(samples()[0], max_new_tokens=5)
    assert answer == reference.generate(samples()[0], max_new_tokens=5)
    for ours, theirs, other in zip(inside.logits, expected.logits, adapted.logits, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, other)
    for ours, theirs in zip(inside.attention, expected.attention, strict=True):
        assert torch.equal(ours, theirs)
    assert lmm.keeps_base
    assert lmm.adapted


@torch.no_grad()
def test_an_own_projector_begins_as_the_models(family):
    lmm = build(family)
    items = [lmm.prepare(sample) for sample in samples()[:2]]
    expected, answer = lmm.encode(items, LOGITS).logits, lmm.generate(samples()[0], max_new_tokens=5)
    lmm._add_parts(PROJECTOR)
    for copied, own in zip(lmm.parts["projector"].copies, projectors(lmm), strict=True):
        assert same_tensors(copied, own)
    for ours, theirs in zip(lmm.encode(items, LOGITS).logits, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert lmm.generate(samples()[0], max_new_tokens=5) == answer
    for copied in lmm.parts["projector"].copies:
        for weight in copied.parameters():
            weight.add_(0.3)
    assert not torch.equal(lmm.encode(items, LOGITS).logits[0], expected[0]), "it is read"


def same_tensors(one, other) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@torch.no_grad()
def test_a_projector_that_begins_anew_has_nothing_of_the_models(family):
    lmm, fresh = build(family), build(family)
    for path in lmm.facts.parts["projector"]:
        for weight in lmm.model.get_submodule(path).parameters():
            weight.add_(3)
    lmm._add_parts(dict(projector=dict(type="OwnProjector", reset=True)))
    part = lmm.parts["projector"]
    for path, copied, own in zip(part._paths, part.copies, projectors(lmm), strict=True):
        norms = [name for name, child in copied.named_modules() if "norm" in type(child).__name__.lower()]
        for name, weight in copied.named_parameters():
            if weight.ndim > 1:
                assert (weight != own.get_parameter(name)).float().mean() > 0.99, name
                assert 0 < weight.std() < 1, name
                assert abs(weight.mean()) < 0.2, name
            elif name.rpartition(".")[0] in norms:
                assert torch.equal(weight, fresh.model.get_submodule(path).get_parameter(name)), name
    assert lmm.encode([lmm.prepare(samples()[0])], LOGITS).logits[0].isfinite().all()


def test_an_own_projector_of_a_bfloat16_model_is_trained_in_float32(family):
    lmm = build(family, dtype="bfloat16")
    item = lmm.prepare(samples()[0])
    with torch.no_grad():
        (theirs,) = lmm.encode([item], LOGITS).logits
    lmm._add_parts(PROJECTOR)
    (ours,) = lmm.encode([item], LOGITS).logits
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - theirs).norm() < 0.03 * theirs.norm(), "but for rounding"
    trained = [weight for weight in lmm.parameters() if weight.requires_grad]
    assert all(weight.dtype == torch.float32 for weight in trained)
    ours.float().log_softmax(-1)[:, -20:].sum().backward()
    before = [weight.detach().clone() for weight in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    for _ in range(20):
        optimizer.step()
    changed = torch.cat([(now != old).flatten() for now, old in zip(trained, before, strict=True)])
    assert changed.float().mean() > 0.95
    with torch.no_grad():
        (ours,) = lmm.encode([item], LOGITS).logits
        lmm.parts["projector"].settle(lmm.model)
        assert {weight.dtype for weight in lmm.model.parameters()} == {torch.bfloat16}
        (settled,) = lmm.encode([item], LOGITS).logits
    assert (settled - ours).norm() < 0.1 * ours.norm()


@torch.no_grad()
def test_a_batch_that_points_is_its_samples_one_by_one(family):
    lmm, _ = with_parts(family)
    given = pointing()
    items = [lmm.prepare(sample) for sample in given]
    alone = gathered([lmm.encode([item], EVERYTHING) for item in items])
    assert_same(lmm.encode(items, EVERYTHING, [sample.image_id for sample in given]), alone)
    assert_same(lmm.encode(items, EVERYTHING), alone)
    # The regions matter: the same words about other regions are read otherwise.
    swapped = replace(given[0], regions=given[0].regions[::-1])
    (other,) = lmm.encode([lmm.prepare(swapped)], LOGITS).logits
    assert (other - alone.logits[0]).abs().max() > 1e-3


@torch.no_grad()
def test_points_of_regions_are_read_like_their_mean(family):
    """The other part that reads regions: it is off for plain questions, and looks where the mean does."""
    lmm = build(family)
    plain = [lmm.prepare(sample) for sample in samples()[:2]]
    expected = lmm.encode(plain, LOGITS).logits
    sampler = dict(type="SpatialSampler", layers=(-1, 1), points=96, stages=(12, 4), neighbours=3)
    lmm._add_parts(dict(regions=sampler))
    lmm.eval()
    for mode in (nullcontext(), lmm.base_mode()):
        with mode:
            found = lmm.encode(plain, LOGITS).logits
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    given = pointing()
    items = [lmm.prepare(sample) for sample in given]
    together = lmm.encode(items, LOGITS, [sample.image_id for sample in given]).logits
    for item, logits in zip(items, together, strict=True):
        torch.testing.assert_close(logits, lmm.encode([item], LOGITS).logits[0], rtol=1e-4, atol=1e-4)
    swapped = replace(given[0], regions=given[0].regions[::-1])
    (other,) = lmm.encode([lmm.prepare(swapped)], LOGITS).logits
    assert (other - together[0]).abs().max() > 1e-3
    for item in items:
        for region, located in item.regions:
            grid = item.images[0].grid
            weights, (rows, cols) = region.weights(grid), grid.view_grid
            across, down = ((torch.arange(count) + 0.5) / count for count in (cols, rows))
            mean = torch.stack([weights.sum(0) @ across, weights.sum(1) @ down])
            # Cells know where the region is but for half of one.
            assert ((located[1].mean(0) - mean).abs() < torch.tensor([0.5 / cols, 0.5 / rows]) + 0.01).all()


@torch.no_grad()
def test_answers_about_regions_are_those_of_teacher_forcing(family):
    lmm, _ = with_parts(family)
    sample = replace(pointing()[0], more_images=(samples()[3].image,))
    sample = replace(sample, regions=(sample.regions[0], Region(box_xyxy=(0, 0, 30, 40), image=1)))
    generation = lmm.generate_with_states(sample, EVERYTHING, max_new_tokens=4)
    assert generation.text == lmm.generate(sample, max_new_tokens=4)
    (logits,) = lmm.encode([generation.inputs], LOGITS).logits
    tokens = generation.token_ids
    expected = logits[-len(tokens) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(generation.log_probs, expected, rtol=1e-4, atol=2e-5)


def test_gradients_reach_every_tensor_of_the_parts_and_no_other(family):
    lmm, _ = with_parts(family)
    lmm.train()
    lmm.encode([lmm.prepare(pointing()[0])], LOGITS).logits[0].log_softmax(-1)[:, -20:].sum().backward()
    for name, weight in lmm.named_parameters():
        assert weight.requires_grad == name.startswith("parts."), name
        assert (weight.grad is not None) == weight.requires_grad, name
    assert all(weight.grad.abs().sum() > 0 for weight in lmm.parts["regions"].parameters())


def test_regions_and_places_agree_or_are_refused(family):
    lmm, reference = with_parts(family)
    sample = pointing()[0]
    with pytest.raises(DataError, match="2 times <region> in the text, but 1 regions"):
        lmm.prepare(replace(sample, regions=sample.regions[:1]))
    with pytest.raises(DataError, match="region 1: .*image 3"):
        lmm.prepare(replace(sample, regions=(sample.regions[0], Region(point_xy=(1, 1), image=3))))
    with pytest.raises(ConfigError, match="no part that reads them"):
        reference.prepare(sample)
    with lmm.base_mode(), pytest.raises(ConfigError, match="untouched LMM cannot read"):
        lmm.encode([lmm.prepare(sample)], LOGITS)
    plain = samples()[0]
    with parts_off(lmm.added_parts), torch.no_grad():
        (without,) = lmm.encode([lmm.prepare(plain)], LOGITS).logits
        assert torch.equal(without, reference.encode([reference.prepare(plain)], LOGITS).logits[0])
        with pytest.raises(ConfigError, match="untouched LMM cannot read"):
            lmm.encode([lmm.prepare(sample)], LOGITS)
