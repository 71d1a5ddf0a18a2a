"""Intervals for numbers that come from few problems.

Tokens of one problem are not independent, so every bootstrap here draws whole problems (clusters)
with replacement. No result depends on the order in which problems were given: inputs are put into
a canonical order before anything is drawn. Shapes: C clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossroads.errors import DataError

_FLOATS = NDArray[np.float64]
_MAX_DRAWN = 1 << 22  # indices held at once; bounds memory for datasets with many problems


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference and its interval; an interval without 0 is a difference seen."""

    value: float
    interval: Interval


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion of independent trials.

    Unlike a bootstrap it does not collapse at 0 or at `total` successes. Wilson (1927), eq. 3.

    Raises:
        DataError: the counts are not `0 <= successes <= total`, or the level is not in (0, 1).
    """
    _check_level(level)
    if not 0 <= successes <= total:
        raise DataError(f"need 0 <= successes <= total, got {successes} of {total}")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    # The formula is exact at the ends; rounding must not push it past them.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return Interval(low, high)


def accuracy_interval(correct: Sequence[bool], level: float = 0.95) -> Interval:
    """Return Wilson's interval of an accuracy, one answer per problem."""
    return wilson_interval(sum(map(bool, correct)), len(correct), level)


def ratio_interval(
    numerators_C: ArrayLike,
    denominators_C: ArrayLike,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval of `sum(numerators) / sum(denominators)`.

    Clusters with neither numerator nor denominator change nothing. The bootstrap cannot see past
    the data: where every cluster has the same ratio the interval is that point. One cluster says
    nothing about other clusters: the interval of a share is then [0, 1].

    Raises:
        DataError: the inputs differ in length, no denominator is positive, or a single cluster
            is given whose ratio is not a share.
    """
    _check_level(level)
    top_C = np.asarray(numerators_C, dtype=np.float64)
    bottom_C = np.asarray(denominators_C, dtype=np.float64)
    if top_C.ndim != 1 or top_C.shape != bottom_C.shape:
        raise DataError(
            "a ratio needs one numerator and one denominator per cluster, "
            f"got shapes {top_C.shape} and {bottom_C.shape}"
        )
    if bottom_C.sum() <= 0:
        raise DataError("a ratio needs at least one cluster with a positive denominator")
    counts_C = (top_C != 0) | (bottom_C != 0)
    top_C, bottom_C = top_C[counts_C], bottom_C[counts_C]
    if len(top_C) == 1:
        return _one_cluster(float(top_C[0] / bottom_C[0]))
    order = np.lexsort((bottom_C, top_C))
    top_C, bottom_C = top_C[order], bottom_C[order]
    generator = np.random.default_rng(seed)
    ratios: list[_FLOATS] = []
    for count in _chunks(resamples, len(top_C)):
        drawn_RC = generator.integers(len(top_C), size=(count, len(top_C)))
        bottom_R = bottom_C[drawn_RC].sum(axis=1)
        kept_R = bottom_R > 0  # clusters of numerators alone have no ratio
        ratios.append(top_C[drawn_RC].sum(axis=1)[kept_R] / bottom_R[kept_R])
    return _percentiles(np.concatenate(ratios), level)


def cluster_bootstrap(
    values_by_cluster: Sequence[ArrayLike],
    statistic: Callable[[_FLOATS], float],
    seed: int,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval of `statistic` over all values of all clusters.

    `statistic` gets the values of the drawn clusters in one array and must not depend on their
    order. Use `ratio_interval` for means and shares: it does the same much faster.

    Raises:
        DataError: there are fewer than two clusters with values.
    """
    _check_level(level)
    clusters = [np.sort(np.asarray(values, dtype=np.float64)) for values in values_by_cluster]
    clusters = sorted((c for c in clusters if c.size), key=lambda c: c.tolist())
    if len(clusters) < 2:
        raise DataError(f"a bootstrap over clusters needs at least two, got {len(clusters)}")
    generator = np.random.default_rng(seed)
    results_R = np.empty(n)
    for i in range(n):
        drawn = generator.integers(len(clusters), size=len(clusters))
        results_R[i] = statistic(np.concatenate([clusters[c] for c in drawn]))
    return _percentiles(results_R, level)


def paired_difference(
    first_C: ArrayLike,
    second_C: ArrayLike,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Return the mean of `first - second` over problems that both were run on.

    Problems are drawn, never the two results of one problem apart, so that what is hard for both
    cancels. A single problem has the widest interval that its values allow for shares: [-1, 1].

    Raises:
        DataError: the inputs differ in length or are empty.
    """
    first = np.asarray(first_C, dtype=np.float64)
    second = np.asarray(second_C, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise DataError(
            "a paired difference needs the same problems on both sides, "
            f"got shapes {first.shape} and {second.shape}"
        )
    difference_C = first - second
    value = float(difference_C.mean())
    if difference_C.size == 1:
        return Difference(value, Interval(-1.0, 1.0))
    ones_C = np.ones_like(difference_C)
    return Difference(value, ratio_interval(difference_C, ones_C, seed, resamples, level))


def _one_cluster(ratio: float) -> Interval:
    if not 0.0 <= ratio <= 1.0:
        raise DataError(f"a ratio of {ratio:g} from a single cluster has no interval")
    return Interval(0.0, 1.0)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise DataError(f"a confidence level lies between 0 and 1, got {level}")


def _chunks(resamples: int, clusters: int) -> list[int]:
    """Split `resamples` so that no chunk draws more than `_MAX_DRAWN` indices."""
    size = max(1, _MAX_DRAWN // clusters)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _percentiles(values_R: _FLOATS, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Interval(float(low), float(high))
