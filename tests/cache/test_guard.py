from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from store_parts import NAMESPACE, features_of, insert, mask_of, open_cache, picture

from flmm_detseg.cache.guard import ApproximateGuard, clopper_pearson, stale_tiles, text_bearing
from flmm_detseg.cache.keys import cut_tiles
from flmm_detseg.cache.settings import ApproximateSettings
from flmm_detseg.errors import ConfigError

SETTINGS = ApproximateSettings(tau=4, share=0.05)


def smooth(seed: int = 0) -> np.ndarray:
    """``[64, 48]`` tiles of a soft gradient: no tile may carry text."""
    rows, cols = np.mgrid[0:32, 0:32]
    image = np.stack([rows * 3 + seed, cols * 3 + 20, rows + cols], axis=2).astype(np.uint8)
    return cut_tiles(image, 4)


def test_bounds_are_the_exact_ones():
    for failures, trials in ((0, 20), (1, 1), (3, 50), (20, 20)):
        lower, upper = clopper_pearson(failures, trials, 0.95)
        if failures:
            assert 1 - binom.cdf(failures - 1, trials, lower) == pytest.approx(0.05, abs=1e-6)
        else:
            assert lower == 0
        if failures < trials:
            assert binom.cdf(failures, trials, upper) == pytest.approx(0.05, abs=1e-6)
        else:
            assert upper == 1
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


def test_edges_tell_text():
    image = np.full((32, 32, 3), 200, np.uint8)
    image[8:16:2, 8:16] = 0
    found = text_bearing(cut_tiles(image, 4), 32, 0.08)
    assert np.flatnonzero(found).tolist() == [18, 19, 26, 27]
    assert not text_bearing(smooth(), 32, 0.08).any()
    with pytest.raises(ConfigError, match="square RGB"):
        text_bearing(np.zeros((2, 50), np.uint8), 32, 0.08)


def test_tolerance_counts_tiles_not_bytes():
    stored = smooth()
    shown = stored + np.uint8(4)
    assert len(stale_tiles(shown, stored, SETTINGS)) == 0
    shown[[5, 9, 40], 3] += 1
    assert stale_tiles(shown, stored, SETTINGS).tolist() == [5, 9, 40]
    shown[7, 0] += 1
    # 4 of 64 are more than 5 percent.
    assert stale_tiles(shown, stored, SETTINGS) is None
    # Differences do not wrap around at 256.
    white, black = np.full((64, 48), 255, np.uint8), np.full((64, 48), 1, np.uint8)
    assert len(stale_tiles(white, black, replace(SETTINGS, share=1))) == 64


def test_a_changed_digit_is_refused_however_small():
    stored = smooth()
    stored[10].reshape(4, 4, 3)[::2] = 254
    shown = stored.copy()
    assert len(stale_tiles(shown, stored, SETTINGS)) == 0
    shown[10, 20] += 1
    assert stale_tiles(shown, stored, SETTINGS) is None
    assert stale_tiles(stored, shown, SETTINGS) is None


def test_off_by_default():
    cache = open_cache()
    insert(cache, smooth(), mask_of(3))
    assert cache.match(smooth() + np.uint8(1), NAMESPACE) is None
    assert cache.guard is None


def test_near_duplicates_are_served_with_their_stale_tiles():
    cache = open_cache(approximate=SETTINGS)
    insert(cache, smooth(), mask_of(3), prefix_key="p")
    shown = smooth() + np.uint8(1)
    shown[20] += 30
    shown[3] = 255
    match = cache.match(shown, NAMESPACE, prefix_key="p")
    assert match is not None
    assert (match.level, match.stale.tolist(), match.stale.dtype) == ("approximate", [20], np.int64)
    assert np.array_equal(match.key.pixels, smooth()[mask_of(3)])
    assert (match.features == features_of(match.key.pixels)).all()
    assert match.prefix is not None
    assert cache.stats()["requests"] == {"L3": 1}
    # An equal one is still exact, and another tenant never sees it.
    exact = cache.match(smooth(), NAMESPACE, prefix_key="p")
    assert exact is not None
    assert exact.level == "exact"
    assert cache.match(shown, replace(NAMESPACE, tenant="another"), prefix_key="p") is None
    assert cache.match(shown, replace(NAMESPACE, vision_fp="new"), prefix_key="p") is None


def test_noise_is_text_to_the_guard():
    cache = open_cache(approximate=SETTINGS)
    insert(cache, picture(0), mask_of(3))
    assert cache.match(picture(0) ^ np.uint8(1), NAMESPACE) is None


def test_shadow_runs_happen_at_their_rate():
    guard = ApproximateGuard(replace(SETTINGS, shadow_rate=0.25), seed=0)
    results = [guard.shadow("entry", lambda: True) for _ in range(2000)]
    assert 0.2 < sum(result is True for result in results) / 2000 < 0.3
    assert guard.enabled
    assert guard.error_bound < 0.01


def test_disagreements_end_the_level_when_they_are_beyond_doubt():
    guard = ApproximateGuard(SETTINGS)
    for number in range(300):
        guard.record(f"{number}", True)
    guard.record("caught", False)
    # 1 of 301 may be chance; the entry itself is not used again.
    assert guard.enabled
    assert not guard.allows("caught")
    assert guard.allows("0")
    for number in range(9):
        guard.record(f"{number}", False)
    assert not guard.enabled
    assert not guard.allows("299")


def test_cache_stops_serving_near_duplicates_after_disagreements():
    cache = open_cache(approximate=replace(SETTINGS, shadow_rate=1.0))
    insert(cache, smooth(), mask_of(3))
    shown = smooth() + np.uint8(1)
    match = cache.match(shown, NAMESPACE)
    assert match is not None
    assert cache.shadow(match, lambda: False) is False
    assert cache.match(shown, NAMESPACE) is None
    exact = cache.match(smooth(), NAMESPACE)
    assert exact is not None
    assert cache.shadow(exact, lambda: False) is None
    stats = cache.stats()
    assert stats["approximate_enabled"] == 0
    assert stats["approximate_error_bound"] == 1
    assert stats["shadow"] == {"disagreed": 1}
