"""Statistics of paired runs: the mean difference, its interval, a test, and the correction for several tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cggm_ray.core.optional import require

LEVEL = 0.95
RESAMPLES = 9999
FEWEST_PAIRS = 5
"""Smallest number of pairs with an interval, because a bootstrap of fewer values is far too narrow."""
SAME = 1e-12
"""Differences that vary by less than this, relative to the values, count as equal, because they are rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between a strategy and the baseline in one metric, over the runs that both have.

    Attributes:
        pairs: number of them.
        mean: of the differences, strategy minus baseline.
        low, high: bounds of the bootstrap interval of that mean, at `LEVEL`; None for fewer than `FEWEST_PAIRS` pairs, and
            where all differences are the same or one is not finite.
        p: of the two-sided paired t-test; None where it is undefined.
        p_holm: p after Holm's correction for the tests of one table.
    """

    pairs: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None


def paired_difference(strategy: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Returns the statistics of paired runs.

    Args:
        strategy: a metric by run.
        baseline: the same metric of the runs that they are paired with.
    """
    ours, theirs = np.asarray(strategy, dtype=float), np.asarray(baseline, dtype=float)
    changes = ours - theirs
    low = high = p = None
    largest = np.abs([ours, theirs]).max()
    if len(changes) > 1 and np.isfinite(changes).all() and np.ptp(changes) > SAME * largest:
        stats = require("scipy.stats", extra="compare", purpose="compare")
        p = float(stats.ttest_rel(ours, theirs).pvalue)
        if len(changes) >= FEWEST_PAIRS:
            found = stats.bootstrap(
                (changes,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile", rng=0
            )
            low, high = map(float, found.confidence_interval)
    return Difference(pairs=len(changes), mean=float(changes.mean()), low=low, high=high, p=p)


def holm(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Corrects p-values by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979).

    The k-th smallest of m values, counted from 1, becomes (m - k + 1) times itself, at most 1 and at least what the one
    before became.

    Args:
        values: by name; None where there was no test, which does not count.
    """
    tested = sorted((p, name) for name, p in values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(values)
    least = 0.0
    for rank, (p, name) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * p))
        corrected[name] = least
    return corrected
