"""A stream of screens with the repository's tiny LLaVA; a model with heads on it; our own head as source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cached_parts import cached_llava, screens
from mmengine.config import Config
from multi_task_parts import HEADS, batch, make_model

from flmm_detseg.cache import ApproximateSettings, FrameDifference
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.streaming import HeadRegions, settings_from_config, stream_from_config
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Sample

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "configs" / "cache" / "tiny_stream_screens.py"
NEAR = ROOT / "configs" / "cache" / "tiny_stream_screens_l3.py"


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


def test_a_static_stream_is_stored_at_first_sight_with_any_weights(at_root):
    frame, question = clock_screens(1)[0], "What is in the image?"
    usual, _ = stream_from_config(SCREENS, untrained=True, device="cpu")
    levels = [usual.ask(frame, question, max_new_tokens=1).level for _ in range(3)]
    assert levels == ["miss", "miss", "L2"]
    session, model = stream_from_config(
        SCREENS, untrained=True, device="cpu", session_id="kiosk", static=True
    )
    assert session.session_id == "kiosk"
    for _ in range(2):
        levels = [session.ask(frame, question, max_new_tokens=1).level for _ in range(2)]
        assert levels == ["miss", "L2"]
        with torch.no_grad():
            tower_body(model.lmm.model.model.vision_tower).embeddings.class_embedding.add_(0.1)


def test_nearly_equal_backgrounds_are_switched_on_by_a_config(at_root):
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[0:112, 0:112]
    smooth = np.stack([rows + 40, cols + 60, (rows + cols) // 2 + 50], axis=2)

    def frame() -> np.ndarray:
        return (smooth + rng.integers(-1, 2, smooth.shape)).astype(np.uint8)

    session, _ = stream_from_config(NEAR, untrained=True, device="cpu", static=True)
    first, second = (session.ask(frame(), "What is in the image?", max_new_tokens=2) for _ in range(2))
    assert (first.level, second.level) == ("miss", "L3")
    assert session.cache.stats()["approximate_enabled"] == 1
    plain, _ = stream_from_config(SCREENS, untrained=True, device="cpu", static=True)
    assert [plain.ask(frame(), max_new_tokens=1).level for _ in range(2)] == ["miss", "miss"]


def test_settings_of_a_config_may_hold_settings(tmp_path):
    assert settings_from_config(NEAR).approximate == ApproximateSettings(tau=4, share=0.05)
    config = Config.fromfile(NEAR)
    config.dump(tmp_path / "dumped.py")
    assert settings_from_config(tmp_path / "dumped.py") == settings_from_config(NEAR)
    config.stream_cache.approximate = None
    assert settings_from_config(config).approximate is None
    large = ROOT / "configs" / "cache" / "cached_llava15_7b_screens.py"
    on_gpu, on_cpu = settings_from_config(large, "cuda:1"), settings_from_config(large, "cpu")
    assert (on_gpu.device, on_gpu.device_bytes, on_gpu.pin_host) == ("cuda:1", 8 << 30, True)
    assert (on_cpu.device_bytes, on_cpu.pin_host) == (0, False)
    assert on_cpu.host_bytes == on_gpu.host_bytes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("host_byte", 1, "`stream_cache` has no setting `host_byte`; did you mean `host_bytes`"),
        ("approximate.taus", 1, "`stream_cache`.approximate has no setting `taus`; did you mean `tau`"),
        ("approximate", True, "give dict\\(type=ApproximateSettings"),
        ("approximate.type", "flmm_detseg.cache.CacheSettings", "wanted ApproximateSettings"),
        ("host_bytes", "much", "host_bytes|wrong kind"),
    ],
)
def test_a_wrong_setting_of_a_config_is_named(key, value, message):
    config = Config.fromfile(NEAR)
    config.merge_from_dict({f"stream_cache.{key}": value})
    with pytest.raises(ConfigError, match=message):
        settings_from_config(config)


def test_plain_llava_has_no_stream(at_root):
    config = Config.fromfile(SCREENS)
    config.model.lmm = config.model.lmm.lmm
    with pytest.raises(ConfigError, match="CachedLMM"):
        stream_from_config(config, untrained=True, device="cpu")


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
    with pytest.raises(ConfigError, match="no head for task 'detection'"):
        HeadRegions(phrase_only)
