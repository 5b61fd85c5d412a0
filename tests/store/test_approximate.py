from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import binom
from store_parts import NAMESPACE, features_of, insert, mask_of, open_cache, picture

from flmm_detseg.errors import ConfigError
from flmm_detseg.store.approximate import ApproximateGuard, clopper_pearson, drawn, stale_tiles, text_bearing
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.store.settings import ApproximateSettings

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


def test_edges_mark_text():
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
    shown[[5, 9, 40]] += 1
    assert stale_tiles(shown, stored, SETTINGS).tolist() == [5, 9, 40]
    shown[7] += 1
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


PATCH, GRID = 14, 10


def scene(background: tuple[int, int, int], colour: tuple[int, int, int], digit: str, size: int, at: int):
    """``[100, 588]`` tiles of an even picture with one digit."""
    image = Image.new("RGB", (PATCH * GRID, PATCH * GRID), background)
    ImageDraw.Draw(image).text((at, at), digit, fill=colour, font=ImageFont.load_default(size))
    return cut_tiles(np.asarray(image), PATCH)


@pytest.mark.parametrize("size", [8, 12, 20, 40, 100])
@pytest.mark.parametrize(
    ("background", "colour"),
    [
        ((0, 0, 255), (255, 0, 0)),
        ((0, 0, 255), (0, 255, 0)),
        ((90, 90, 90), (90, 90, 255)),
        ((120, 60, 60), (60, 120, 60)),
        *(((128, 128, 128), (128 - step,) * 3) for step in (1, 2, 4, 5, 9, 20, 60)),
        *(((200, 128, 128), (200, 128 + step, 128)) for step in (2, 4, 6, 30)),
    ],
)
def test_another_digit_is_refused_whatever_its_colour_contrast_and_size(background, colour, size):
    rng = np.random.default_rng(0)
    for old, new in ("38", "17", "56"):
        at = int(rng.integers(5, 30))
        stored, shown = (scene(background, colour, digit, size, at) for digit in (old, new))
        generous = replace(SETTINGS, share=0.3)
        assert stale_tiles(shown, stored, generous) is None
        assert stale_tiles(stored, shown, generous) is None


def test_a_pale_digit_in_noise_is_refused_as_well():
    rng = np.random.default_rng(0)
    stored, shown = (scene((128,) * 3, (125,) * 3, digit, 40, 20).astype(np.int16) for digit in "38")
    stored, shown = (tiles + rng.integers(-1, 2, tiles.shape) for tiles in (stored, shown))
    assert np.abs(stored - shown).max() <= 5
    settings = replace(SETTINGS, tau=5)
    assert stale_tiles(shown.astype(np.uint8), stored.astype(np.uint8), settings) is None


def test_a_stroke_that_fills_whole_tiles_is_sent_again():
    stored = np.full((100, 588), 128, np.uint8)
    shown = stored.copy()
    shown[[33, 43]] -= 4
    assert stale_tiles(shown, stored, SETTINGS).tolist() == [33, 43]
    # All of it darker is another light.
    assert len(stale_tiles(stored - np.uint8(4), stored, SETTINGS)) == 0


@pytest.mark.parametrize("resized", [False, True])
def test_noise_of_a_sensor_is_accepted(resized):
    rng = np.random.default_rng(0)
    side = PATCH * 16
    rows, cols = np.mgrid[0:side, 0:side]
    clean = np.stack([rows / 3 + 40, cols / 3 + 60, (rows + cols) / 6 + 50], axis=2)

    def frame() -> np.ndarray:
        if not resized:
            return cut_tiles((clean + rng.uniform(-1.9, 1.9, clean.shape)).astype(np.uint8), PATCH)
        large = clean.repeat(2, 0).repeat(2, 1)
        noisy = Image.fromarray((large + rng.normal(0, 1.0, large.shape)).astype(np.uint8))
        return cut_tiles(np.asarray(noisy.resize((side, side), Image.Resampling.BICUBIC)), PATCH)

    accepted = [stale_tiles(frame(), frame(), SETTINGS) is not None for _ in range(4)]
    assert all(accepted)


def test_what_is_drawn_is_distinguished_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.integers(-4, 5, (500, 588))
    assert not drawn(noise).any()
    assert not drawn(np.full((3, 588), 7)).any()
    dot = np.zeros((1, PATCH, PATCH, 3), int)
    dot[0, 5:7, 5:7, 2] = 3
    line = np.zeros((1, PATCH, PATCH, 3), int)
    line[0, :, 4] = -2
    assert drawn(np.concatenate([dot, line]).reshape(2, -1)).all()


def test_off_by_default():
    cache = open_cache()
    insert(cache, smooth(), mask_of(3))
    assert cache.match(smooth() + np.uint8(1), NAMESPACE) is None
    assert cache.guard is None


def test_near_duplicates_are_served_with_their_changed_tiles():
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
    assert match.served == "L3"
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


def test_spot_checks_happen_at_their_rate():
    guard = ApproximateGuard(replace(SETTINGS, shadow_rate=0.25), seed=0)
    results = [guard.spot_check("entry", lambda: True) for _ in range(2000)]
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
    assert cache.spot_check(match, lambda: False) is False
    assert cache.match(shown, NAMESPACE) is None
    exact = cache.match(smooth(), NAMESPACE)
    assert exact is not None
    assert cache.spot_check(exact, lambda: False) is None
    stats = cache.stats()
    assert stats["approximate_enabled"] == 0
    assert stats["approximate_error_bound"] == 1
    assert stats["shadow"] == {"disagreed": 1}
