"""Several questions in one pass: each gets what it gets alone, whatever the others are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens

from flmm_detseg.cache.reading.prefusion import PreFusion
from flmm_detseg.cache.serving.batch import prefill_together
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.errors import ConfigError
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
from flmm_detseg.structures import Sample

QUESTIONS = (
    "a red star ?",
    "the ring of blue on the left ?",
    "what ?",
    "a small square behind the red ring ?",
)


def new_use(**settings) -> CacheUse:
    return CacheUse(BackgroundCache(CacheSettings(**{"min_tiles": 1, "admission": "always", **settings})))


def question(image: np.ndarray, number: int = 0, boxes: list = SCREEN_BOX) -> Sample:
    text = QUESTIONS[number % len(QUESTIONS)]
    return Sample(f"q{number}", image, "", (), prompt=text, meta={"objects_xyxy": boxes})


def watch() -> Stopwatch:
    return Stopwatch(torch.device("cpu"))


def tokens(done) -> list[int]:
    position = int(done.parts.plan.position_ids[-1]) + 1
    return [
        token.token_id
        for token in done.decoder.decode(done.last_state, position, end_ids=[], max_new_tokens=6)
    ]


def passes(model) -> list[int]:
    """Sizes of the language model's batches, from now on. A hook makes it another model: call it before the first
    question, and clear the list.
    """
    seen = []
    model.model.model.language_model.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("positions", ["packed", "raster"])
@pytest.mark.parametrize("projectors", ["shared", "separate"])
@pytest.mark.parametrize("prefusion", [None, PreFusion(num_layers=2)], ids=["plain", "fused"])
def test_hits_in_one_pass_equal_hits_one_by_one(positions, projectors, prefusion):
    model = cached_llava(positions=positions, projectors=projectors, prefusion=prefusion).eval()
    if prefusion is not None:
        with torch.no_grad():
            model.prefusion.layers.gates.fill_(0.7)
    sizes, use = passes(model), new_use()
    first, *images = screens(5)
    prefill(model, question(first), watch(), use)
    samples = [question(image, number) for number, image in enumerate(images)]
    alone = [prefill(model, sample, watch(), use) for sample in samples]
    # Texts of one length would need no padding, and equal answers would show nothing.
    assert len({done.parts.plan.length for done in alone}) > 2
    assert not torch.allclose(alone[0].last_state, alone[1].last_state, atol=1e-3)
    sizes.clear()
    together = prefill_together(model, samples, watch(), use)
    assert sizes == [len(samples)]
    for one, other in zip(alone, together, strict=True):
        assert (other.level, other.entry_id, other.stored) == ("L2", one.entry_id, False)
        assert other.item.record_id == one.item.record_id
        torch.testing.assert_close(other.last_state, one.last_state, rtol=0, atol=1e-5)
        assert other.decoder.length == one.decoder.length == one.parts.plan.length
        for side, wanted in zip(other.decoder.snapshot(), one.decoder.snapshot(), strict=True):
            torch.testing.assert_close(side, wanted, rtol=0, atol=1e-5)
    assert [tokens(done) for done in together] == [tokens(done) for done in alone]


def test_misses_and_other_backgrounds_in_between():
    model, use = cached_llava().eval(), new_use()
    sizes = passes(model)
    ours, theirs = screens(4), screens(3, seed=1)
    prefill(model, question(ours[0]), watch(), use)
    samples = [
        question(ours[1], 0),
        # Stored by its first question, hit by the second and the third.
        question(theirs[0], 1),
        question(ours[2], 1),
        question(theirs[1], 2),
        question(theirs[2], 3),
        # Shown before: no object is left.
        question(ours[3], 2, boxes=[]),
    ]
    sizes.clear()
    found = prefill_together(model, samples, watch(), use)
    assert [done.level for done in found] == ["L2", "miss", "L2", "L2", "L2", "L2"]
    # Prefix and suffix of the miss, then one pass per entry.
    assert sorted(sizes) == [1, 1, 2, 3]
    for sample, done in zip(samples, found, strict=True):
        cold = prefill(model, sample, watch(), partition=done.item.partition)
        torch.testing.assert_close(done.last_state, cold.last_state, rtol=0, atol=1e-5)
        assert tokens(done) == tokens(cold)


def test_nearly_equal_backgrounds_are_not_served():
    settings = ApproximateSettings(tau=4, share=0.5, edge_density=2.0, shadow_rate=1.0)
    model, use = cached_llava().eval(), new_use(approximate=settings)
    first, second = screens(2)
    second[:14, :14] ^= 1
    prefill_together(model, [question(first)], watch(), use)
    (done,) = prefill_together(model, [question(second)], watch(), use)
    assert done.level == "miss"
    assert use.cache.stats()["requests"] == {"miss": 2}
    second[:14, :14] ^= 3
    assert prefill(model, question(second), watch(), use).level == "L3"


def test_a_background_without_objects():
    model, use = cached_llava().eval(), new_use()
    image = screens(1)[0]
    prefill(model, question(image, boxes=[]), watch(), use)
    for number, done in enumerate(
        prefill_together(model, [question(image, n) for n in range(2)], watch(), use)
    ):
        assert done.level == "L2"
        assert not len(done.parts.objects)
        cold = prefill(model, question(image, number), watch(), partition=done.item.partition)
        torch.testing.assert_close(done.last_state, cold.last_state, rtol=0, atol=1e-5)


def test_images_of_other_sizes_are_not_mixed():
    """Without letterbox patches a narrow image can show a square one's background with fewer objects."""
    model, use = cached_llava(letterbox="drop").eval(), new_use()
    square = screens(1)[0]
    # The middle columns are background; the outer ones are objects, or letterbox.
    boxes = [[0, 0, 14, 56], [42, 0, 56, 56]]
    prefill(model, question(square, boxes=boxes), watch(), use)
    samples = [question(square, 0), question(np.ascontiguousarray(square[:, 14:42]), 1), question(square, 2)]
    found = prefill_together(model, samples, watch(), use)
    assert [(done.level, len(done.parts.objects)) for done in found] == [("L2", 8), ("L2", 0), ("L2", 8)]
    for sample, done in zip(samples, found, strict=True):
        alone = prefill(model, sample, watch(), use)
        torch.testing.assert_close(done.last_state, alone.last_state, rtol=0, atol=1e-5)


def test_image_order_has_nothing_to_share():
    model = cached_llava(order="image").eval()
    with pytest.raises(ConfigError, match="order='background'"):
        prefill_together(model, [question(screens(1)[0])], watch(), new_use())


def test_no_question_is_no_pass():
    model = cached_llava().eval()
    sizes = passes(model)
    assert prefill_together(model, [], watch(), new_use()) == []
    assert sizes == []
