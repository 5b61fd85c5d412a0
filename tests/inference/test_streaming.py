"""A stream of screens with the repository's tiny LLaVA; grounding of its answers; our own head as source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_parts import cached_llava, screens
from mmengine.config import Config
from multi_task_parts import HEADS, batch, make_model

from flmm_detseg.cache import BackgroundCache, CacheSettings, FrameDifference, Partitioner, StreamSession
from flmm_detseg.cache.answering import answer
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.streaming import HeadRegions, stream_from_config
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec, Phrase, Sample

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "configs" / "cache" / "tiny_stream_screens.py"


def clock_screens(count: int) -> list[np.ndarray]:
    """112 x 112 wallpapers with other "digits" in the same corner."""
    rng = np.random.default_rng(0)
    wallpaper = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    found = [wallpaper.copy() for _ in range(count)]
    for picture in found:
        picture[8:24, 40:72] = rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)
    return found


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_stream_of_screens_from_the_repositorys_config(at_root):
    session, model = stream_from_config(SCREENS, untrained=True, device="cpu")
    assert isinstance(model.lmm.partitioner.source, FrameDifference)
    frames = clock_screens(6)
    found = [session.ask(frame, "What is in the image?", max_new_tokens=6) for frame in frames]
    # All background; changes known, first sighting of this background or the second; stored; hits.
    assert [item.level for item in found][:2] == ["miss", "miss"]
    assert [item.level for item in found][-2:] == ["L2", "L2"]
    last = found[-1]
    assert 150 < len(last.partition.background) < 196
    cold = answer(
        model.lmm,
        Sample("cold", frames[-1], "", (), prompt="What is in the image?"),
        partition=last.partition,
        max_new_tokens=6,
    )
    assert cold.token_ids == last.token_ids


def test_sessions_may_share_a_cache(at_root):
    first, _ = stream_from_config(SCREENS, untrained=True, device="cpu")
    second, _ = stream_from_config(SCREENS, untrained=True, device="cpu", cache=first.cache, tenant="other")
    assert second.cache is first.cache
    assert second.session_id != first.session_id
    assert second.tenant == "other"


def test_plain_llava_has_no_stream(at_root):
    config = Config.fromfile(SCREENS)
    config.model.lmm = config.model.lmm.lmm
    with pytest.raises(ConfigError, match="CachedLMM"):
        stream_from_config(config, untrained=True, device="cpu")


def test_answers_of_hits_are_grounded_by_the_phrase_head():
    lmm = cached_llava(partitioner=Partitioner(FrameDifference(), dilate=0))
    model = GroundingLMM(lmm=lmm, heads=dict(phrase=HEADS["phrase"])).eval()
    for cache in (None, _cache()):
        session = StreamSession(lmm, cache)
        for picture in screens(4):
            found = session.ask(picture, max_new_tokens=6, capture=CaptureSpec(attention=True))
    assert found.level == "L2"
    spans = [span for span in found.generation.token_offsets if found.text[slice(*span)].strip()]
    sample = Sample("one", picture, found.text, (Phrase((spans[0],)), Phrase((spans[1],))))
    prediction = model.predict_answer(sample, found.generation)
    assert prediction.masks.shape == (2, 56, 56)
    # The same through the whole model without a stream: teacher forcing with the same groups.
    item = replace(lmm.prepare(sample), partition=found.partition)
    with torch.no_grad():
        states = lmm.encode([item], CaptureSpec(attention=True))
    generated = lmm.states_of_phrases(found.generation, sample.phrases)
    assert states.attention[0].shape == generated.attention[0].shape == (2, 12, 4, 4)


def _cache():
    return BackgroundCache(CacheSettings(min_tiles=1, admission="always"))


def test_a_whole_grounding_model_trains_on_a_cached_lmm():
    lora = dict(vision=dict(r=2, alpha=4), llm=dict(r=2, alpha=4))
    lmm = cached_llava(frozen=False, lora=lora, train=("separators",))
    model = make_model(lmm=lmm, heads={name: HEADS[name] for name in ("phrase", "detection", "language")})
    samples = [sample for sample in batch() if sample.task != "segmentation"]
    for sample in samples:
        sample.meta["objects_xyxy"] = [[0, 0, 20, 20]]
    loss, figures = model.parse_losses(model.loss(samples))
    loss.backward()
    assert lmm.separators.grad.abs().sum() > 0
    assert {"phrase.loss_mask", "language.loss_distill"} <= set(figures)


def test_our_own_detection_head_is_a_source():
    detector = make_model().eval()
    sample = Sample("one", screens(1)[0], "", ())
    detector.heads["detection"].score_threshold = 0.0
    source = HeadRegions(detector, threshold=0.0)
    found = source.find(sample)
    theirs = detector.detect([sample])[0]
    np.testing.assert_array_equal(found.boxes_xyxy, theirs.bboxes.numpy())
    assert set(found.labels) <= {"a", "b"}
    least = float(np.sort(found.scores)[-2])
    assert len(HeadRegions(detector, threshold=least).find(sample).scores) == 2
    phrase_only = GroundingLMM(lmm=cached_llava(), heads=dict(phrase=HEADS["phrase"]))
    with pytest.raises(ConfigError, match="no head `detection`"):
        HeadRegions(phrase_only)
