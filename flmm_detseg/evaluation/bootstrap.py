"""Percentile bootstrap intervals of figures over records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Counts of a resample kept at once: 32 MB.
_MAX_COUNTS = 1 << 22


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    A resample's mean depends only on how often each distinct value was drawn, and those counts are multinomial: exact,
    and quick for any number of questions, because scores take few values.

    Args:
        values: float ``[N]``, one per question; differences for a paired comparison.
        level: Of confidence.
        num_resamples: Number of resamples.
        seed: Of the draw; the result does not depend on the order of the values.

    Returns:
        Lower and upper bound.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    # Differences that are equal up to rounding are one value.
    distinct, counts = np.unique(np.round(np.asarray(values, dtype=np.float64), 12), return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=num_resamples)
    low, high = np.quantile(draws @ distinct / total, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals of ratios of sums over the same N records; a mean has denominators 1.

    All F ratios see the same resamples. Those in which a ratio's denominator is 0 (none of the records that it counts
    was drawn) are left out of its interval. Records of one image are not independent: where ``clusters`` names their
    images, whole images are drawn.

    Args:
        numerators: float ``[F, N]``, what each record adds above the line.
        denominators: float ``[F, N]``, what it adds below; not negative, and positive for one record of each ratio.
        clusters: N names, equal for records that are drawn together; None: each record by itself.
        level: Of confidence.
        num_resamples: Number of resamples.
        seed: Of the draw; the order of the records matters, so sort them.

    Returns:
        Lower and upper bound of each ratio.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if clusters is not None:
        above, below = _by_cluster(above, clusters), _by_cluster(below, clusters)
    parts = [
        (counts @ above.T, counts @ below.T) for counts in _resamples(above.shape[1], num_resamples, seed)
    ]
    sums, totals = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    bounds = [(1 - level) / 2, (1 + level) / 2]
    intervals = []
    for number in range(len(above)):
        drawn = totals[:, number] > 0
        low, high = np.quantile(sums[drawn, number] / totals[drawn, number], bounds)
        intervals.append((float(low), float(high)))
    return intervals


def _by_cluster(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Sums ``[F, C]`` of ``[F, N]`` over the records of each cluster, in the order of first appearance."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(values), len(places)))
    np.add.at(sums.T, [places[name] for name in clusters], values.T)
    return sums


def _resamples(num_records: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each record was drawn, float64 ``[resamples of a piece, N]``."""
    rng = np.random.default_rng(seed)
    step = max(1, _MAX_COUNTS // num_records)
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        drawn = rng.integers(num_records, size=(rows, num_records)) + num_records * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_records).reshape(rows, -1).astype(np.float64)
