"""Images of several modalities in one prompt, each read by its own projector; photos are read as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from same_states import EVERYTHING, assert_same
from test_conformance import gathered, samples
from tiny_families import FAMILIES, build

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import CaptureSpec

pytestmark = pytest.mark.parametrize("family", FAMILIES)
PARTS = {name: dict(type="OwnProjector", modalities=[name]) for name in ("depth", "heat")}
LOGITS = CaptureSpec(logits=True)


def with_projectors(family: str):
    """An LMM whose projectors for depth and heat differ from the one for photos, and the LMM without them."""
    lmm, reference = build(family, parts=PARTS), build(family)
    weights = dict(reference.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lmm.model.named_parameters():
            weight.copy_(weights[name.replace(".base_layer.", ".")])
        for weight in lmm.parts.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return lmm.eval(), reference


def scenes():
    """The same two pictures as photo and depth, photo and heat, two photos, and a lone depth map."""
    first, second = samples()[0], samples()[3]
    pair = replace(first, more_images=(second.image,), image_id="pair")
    return [
        replace(pair, modalities=("rgb", "depth")),
        replace(pair, modalities=("rgb", "heat")),
        replace(pair, modalities=("rgb", "rgb")),
        replace(first, modalities=("depth",)),
    ]


@torch.no_grad()
def test_each_image_is_read_by_the_projector_of_its_modality(family):
    lmm, reference = with_projectors(family)
    given = scenes()
    items = [lmm.prepare(sample) for sample in given]
    alone = gathered([lmm.encode([item], EVERYTHING) for item in items])
    assert_same(lmm.encode(items, EVERYTHING, [sample.image_id for sample in given]), alone)
    depth, heat, photos, _ = alone.logits
    assert (depth - heat).abs().max() > 1e-4
    assert (depth - photos).abs().max() > 1e-4
    # Photos only: the LMM as it was, bit for bit, also beside others; in base mode everything is.
    plain = reference.encode([reference.prepare(given[2])], EVERYTHING)
    assert torch.equal(plain.logits[0], photos)
    with lmm.base_mode():
        assert torch.equal(lmm.encode([items[0]], LOGITS).logits[0], plain.logits[0])
    assert torch.equal(
        alone.vision[0][EVERYTHING.vision_layers[0]], plain.vision[0][EVERYTHING.vision_layers[0]]
    )


@torch.no_grad()
def test_answers_about_several_modalities_are_those_of_teacher_forcing(family):
    lmm, reference = with_projectors(family)
    mixed, _, photos, _ = scenes()
    generation = lmm.generate_with_states(mixed, EVERYTHING, max_new_tokens=4)
    assert generation.text == lmm.generate(mixed, max_new_tokens=4)
    (logits,) = lmm.encode([generation.inputs], LOGITS).logits
    expected = logits[-len(generation.token_ids) - 1 : -1].log_softmax(-1)
    expected = expected.gather(1, generation.token_ids[:, None])[:, 0]
    torch.testing.assert_close(generation.log_probs, expected, rtol=1e-4, atol=2e-5)
    assert lmm.generate(photos, max_new_tokens=4) == reference.generate(photos, max_new_tokens=4)
    assert lmm.needs_parts(mixed)
    assert not lmm.needs_parts(photos)


def test_gradients_reach_the_projectors_of_the_modalities_that_are_there(family):
    lmm, _ = with_projectors(family)
    lmm.train()
    lmm.encode([lmm.prepare(scenes()[0])], LOGITS).logits[0].log_softmax(-1)[:, -20:].sum().backward()
    for name, weight in lmm.named_parameters():
        assert weight.requires_grad == name.startswith("parts."), name
        assert (weight.grad is not None) == name.startswith("parts.depth."), name


def test_a_routed_projector_begins_as_the_models_and_leaves_photos_alone(family):
    lmm = build(family)
    mixed, _, photos, lone = scenes()
    given = [mixed, photos, lone]
    with torch.no_grad():
        before = [
            lmm.encode([lmm.prepare(replace(sample, modalities=()))], LOGITS).logits[0] for sample in given
        ]
    lmm._add_parts(dict(routed=dict(type="RoutedProjector", modalities=["rgb", "depth"])))
    items = [lmm.prepare(sample) for sample in given]
    with torch.no_grad():
        begun = [lmm.encode([item], LOGITS).logits[0] for item in items]
    torch.testing.assert_close(
        begun[0], before[0], rtol=1e-4, atol=1e-4
    )  # projected apart, so rounded otherwise
    assert torch.equal(begun[1], before[1])
    assert torch.equal(begun[2], before[2])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in lmm.parts.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        alone = gathered([lmm.encode([item], EVERYTHING) for item in items])
        assert_same(lmm.encode(items, EVERYTHING, [sample.image_id for sample in given]), alone)
        assert torch.equal(alone.logits[1], before[1])
        for index in (0, 2):
            assert (alone.logits[index] - before[index]).abs().max() > 1e-4
        with lmm.base_mode():
            assert torch.equal(lmm.encode(items[2:], LOGITS).logits[0], before[2])
    lmm.train()
    lmm.encode(items[:1], LOGITS).logits[0].log_softmax(-1)[:, -20:].sum().backward()
    for name, weight in lmm.named_parameters():
        assert weight.requires_grad == name.startswith("parts.routed."), name
        assert (weight.grad is not None) == weight.requires_grad, name
    shares = [float(value) for value in lmm.auxiliary_losses().values()]
    assert sum(shares) == pytest.approx(1)
    assert len(shares) == 6


def test_modalities_that_nothing_reads_are_refused(family):
    lmm, reference = with_projectors(family)
    sample = scenes()[0]
    with pytest.raises(DataError, match="no part of this LMM reads 'dpeth' images; .* depth, heat, rgb"):
        lmm.prepare(replace(sample, modalities=("rgb", "dpeth")))
    with pytest.raises(DataError, match="1 modalities for 2 images"):
        reference.prepare(replace(sample, modalities=("rgb",)))
    with pytest.raises(
        ConfigError, match=r"`lmm.parts.depth` and `lmm.parts.other` are both .* 'depth' images"
    ):
        build(family, parts={**PARTS, "other": dict(type="OwnProjector", modalities=["depth"])})
