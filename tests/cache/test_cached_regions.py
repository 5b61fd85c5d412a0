"""Questions that point at regions, behind the background cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import SCREEN_BOX, boxed_sample, cached_llava, screens

from flmm_detseg.cache.regions.sources import NoRegions, Partitioner
from flmm_detseg.cache.serving.batch import prefill_together
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.structures import CaptureSpec, Region, Sample

PARTS = dict(regions=dict(type="RegionTokens", layers=(-1, 1)))
LOGITS = CaptureSpec(logits=True)
META = {"objects_xyxy": SCREEN_BOX}
QUESTION = "is <region> left of <region> ?"
# Background, object, and a part of both.
BOXES = [(0, 0, 14, 14), (16, 16, 26, 24), (2, 8, 40, 40)]


def pointing(*boxes, index: int = 0) -> Sample:
    regions = tuple(Region(box_xyxy=box) for box in boxes)
    return replace(boxed_sample(index), prompt=QUESTION, phrases=(), masks=None, task="vqa", regions=regions)


def new_cache() -> BackgroundCache:
    return BackgroundCache(CacheSettings(min_tiles=1, admission="always"))


@torch.no_grad()
def test_in_one_group_it_is_the_llava_that_points():
    model = cached_llava(order="image", partitioner=Partitioner(NoRegions()), parts=PARTS).eval()
    sample = pointing(*BOXES[:2])
    (ours,) = model.encode([model.prepare(sample)], LOGITS).logits
    (plain,) = model.lmm.encode([model.lmm.prepare(sample)], LOGITS).logits
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    assert model.generate(sample, max_new_tokens=6) == model.lmm.generate(sample, max_new_tokens=6)


@torch.no_grad()
@pytest.mark.parametrize("order", ["background", "image"])
def test_a_shared_row_is_its_samples_one_by_one(order):
    model = cached_llava(order=order, parts=PARTS).eval()
    given = [pointing(*BOXES[:2]), boxed_sample(0), pointing(*BOXES[1:]), pointing(*BOXES[::2], index=1)]
    keys = ["a", "a", "a", None]
    items = [model.prepare(sample) for sample in given]
    together = model.encode(items, LOGITS, keys).logits
    for item, logits in zip(items, together, strict=True):
        torch.testing.assert_close(logits, model.encode([item], LOGITS).logits[0], rtol=1e-4, atol=1e-4)
    size = min(len(together[0]), len(together[2]))
    assert (together[0][:size] - together[2][:size]).abs().max() > 1e-3, "regions matter"


@torch.no_grad()
def test_a_hit_points_as_a_cold_run_does():
    model = cached_llava(parts=PARTS).eval()
    session = StreamSession(model, new_cache())
    image = screens(1)[0]
    seen = []
    for number, boxes in enumerate([BOXES[:2], BOXES[1:], BOXES[::2]]):
        asked = dict(meta=META, regions=boxes, max_new_tokens=6, capture=CaptureSpec(hidden="all"))
        hit = session.ask(image, QUESTION, **asked)
        cold = session.ask(image, QUESTION, cache="off", **asked)
        assert hit.level == ("L2" if number else "miss")
        assert hit.token_ids == cold.token_ids
        assert torch.equal(hit.generation.hidden, cold.generation.hidden)
        seen.append(hit.generation.hidden[:, 0])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


@torch.no_grad()
def test_hits_that_run_together_point_as_they_do_alone():
    model = cached_llava(parts=PARTS).eval()
    use = CacheUse(new_cache())
    image = screens(1)[0]
    given = [
        Sample(
            "screen", image, "", (), prompt=QUESTION, meta=dict(META), regions=tuple(map(Region.of, boxes))
        )
        for boxes in (BOXES[:2], BOXES[1:], BOXES[::2])
    ]
    alone = [prefill(model, sample, Stopwatch(model.device), use).last_state for sample in given]
    together = prefill_together(model, given, Stopwatch(model.device), use)
    assert [done.level for done in together] == ["L2"] * 3
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.last_state, theirs, rtol=1e-4, atol=1e-4)


def test_the_part_is_trained_and_stored_and_off_in_base_mode():
    model = cached_llava(parts=PARTS).train()
    item = model.prepare(pointing(*BOXES[:2]))
    model.encode([item], LOGITS).logits[0].log_softmax(-1)[:, -20:].sum().backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    for name, weight in trained.items():
        assert name.startswith("parts.regions.")
        assert weight.grad.abs().sum() > 0
    assert model.trained_layout["regions"]["token"] == "<region>"
    assert model.keeps_base
    with model.base_mode(), pytest.raises(ConfigError, match="untouched LMM cannot read"):
        model.encode([item], LOGITS)
