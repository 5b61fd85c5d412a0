from __future__ import annotations

import numpy as np
import pytest

from flmm_detseg.evaluation import bootstrap
from flmm_detseg.evaluation.bootstrap import bootstrap_interval, ratio_intervals


def test_equals_resampling_in_a_loop():
    rng = np.random.default_rng(0)
    above = rng.random((2, 30))
    below = np.stack([np.ones(30), (rng.random(30) < 0.2).astype(float)])
    above[1] *= below[1]
    draws = np.random.default_rng(5)
    ratios = [[], []]
    for _ in range(400):
        chosen = draws.integers(30, size=30)
        for number in range(2):
            if below[number, chosen].sum():
                ratios[number].append(above[number, chosen].sum() / below[number, chosen].sum())
    assert len(ratios[1]) < 400, "some resamples have nothing to count"
    expected = [tuple(np.quantile(values, [0.05, 0.95])) for values in ratios]
    got = ratio_intervals(above, below, level=0.9, num_resamples=400, seed=5)
    assert np.allclose(got, expected, atol=1e-12)


def test_records_of_a_cluster_are_drawn_together():
    rng = np.random.default_rng(3)
    above, names = rng.random(12), [f"image {k}" for k in (2, 0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 5)]
    members = [[k for k, own in enumerate(names) if own == name] for name in dict.fromkeys(names)]
    draws, means = np.random.default_rng(7), []
    for _ in range(300):
        chosen = [k for cluster in draws.integers(len(members), size=len(members)) for k in members[cluster]]
        means.append(above[chosen].mean())
    ones = np.ones((1, 12))
    (found,) = ratio_intervals(above[None], ones, clusters=names, num_resamples=300, seed=7)
    assert np.allclose(found, np.quantile(means, [0.025, 0.975]), atol=1e-12)
    # Each by itself is as without clusters.
    alone = ratio_intervals(above[None], ones, clusters=[str(k) for k in range(12)])
    assert alone == ratio_intervals(above[None], ones)


def test_it_does_not_depend_on_how_many_resamples_are_kept_at_once(monkeypatch):
    above, below = np.random.default_rng(1).random((2, 1, 50))
    whole = ratio_intervals(above, below)
    monkeypatch.setattr(bootstrap, "_MAX_COUNTS", 170)
    assert ratio_intervals(above, below) == whole


def test_a_mean_has_the_interval_of_a_mean():
    values = np.random.default_rng(2).random(100)
    ((low, high),) = ratio_intervals(values[None], np.ones((1, 100)), num_resamples=4000)
    assert (low, high) == pytest.approx(bootstrap_interval(values), abs=4e-3)
