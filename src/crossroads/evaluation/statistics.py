"""How right a system is, and whether two systems differ, with one or several samples per problem.

Problems are the independent units: the samples of one problem are averaged first, and every
interval comes from how problems differ. No interval here is a point. Where the data show no spread
they are few, not certain; so, as Laplace's rule of succession does, the spread is measured after
adding two imagined problems that disagree as far as they can. Shapes: P problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from crossroads.errors import DataError
from crossroads.statistics import Interval

Samples: TypeAlias = Sequence[Sequence[bool]]
"""For each problem, which of its samples are right; the number of samples may differ."""
Floats: TypeAlias = NDArray[np.float64]
MCNEMAR, SIGN_FLIP = "exact McNemar", "sign flips"
FLIPS = 10_000
"""Random sign patterns of a test: its smallest p value is about 1 / FLIPS."""
IMAGINED = 2
"""Problems added to measure spread, one of each sign."""
ROUNDING = 1e-9
"""Differences below it come from rounding."""
_BATCH = 500  # sign patterns held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """A mean paired difference, its interval, and the p value of no difference under `test`.

    Interval and test are made in different ways and may disagree at the edge; the test decides.
    """

    difference: float
    interval: Interval
    p_value: float
    test: str


def average_at_k(correct: Samples, level: float = 0.95) -> Estimate:
    """Return avg@k, the mean over problems of the share of right samples, every problem alike.

    Raises:
        DataError: there are no problems, a problem has no samples, or the level is not in (0, 1).
    """
    share_P = problem_shares(correct)
    return Estimate(mean(share_P), share_interval(share_P, level))


def pass_at_k(correct: Samples, k: int, level: float = 0.95) -> Estimate:
    """Return pass@k, the probability that one of k samples is right, and its interval.

    Unbiased: of n samples with c right, `1 - C(n-c, k) / C(n, k)`, as a product that cannot
    overflow. Chen et al. (2021), arXiv 2107.03374, eq. 1.

    Raises:
        DataError: k is below 1 or above a problem's samples, there are no problems, or the level
            is not in (0, 1).
    """
    if k < 1:
        raise DataError(f"pass@k needs k of at least 1, got {k}")
    fewest = min((len(samples) for samples in correct), default=k)
    if fewest < k:
        raise DataError(f"pass@{k} needs {k} samples of every problem, got {fewest} of one")
    _check_problems(correct)
    passed_P = np.array([_pass_share(len(row), sum(map(bool, row)), k) for row in correct])
    return Estimate(mean(passed_P), share_interval(passed_P, level))


def compare(first: Samples, second: Samples, seed: int, level: float = 0.95) -> Comparison:
    """Compare two systems on the same problems: `first - second` in avg@k.

    With one sample each the p value is McNemar's exact test (1947): a fair coin for every problem
    that only one system solves. With several, signs of the per-problem differences are flipped at
    random: the same test where every problem has one sample. `seed` is for these flips.

    Raises:
        DataError: the numbers of problems differ, or there is nothing to compare.
    """
    difference_P = paired_differences(first, second)
    if all(len(row) == 1 for row in (*first, *second)):
        p_value = mcnemar_p_value(int((difference_P > 0).sum()), int((difference_P < 0).sum()))
        test = MCNEMAR
    else:
        p_value, test = sign_flip_p_value(difference_P, seed), SIGN_FLIP
    interval = difference_interval(difference_P, level)
    return Comparison(mean(difference_P), interval, p_value, test)


def share_interval(share_P: Floats, level: float = 0.95) -> Interval:
    """Return the interval of a mean of per-problem shares: Wilson's, of an effective sample size.

    The effective size is the number of independent answers that would give the mean its variance:
    `n = 1 + P p(1-p) / s^2`, with s^2 the sample variance over problems (Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts"). With one
    sample per problem n is exactly P, so this is Wilson's interval. p and s^2 include two imagined
    problems, one all right and one all wrong, so n falls to P where nearly all samples agree.

    Raises:
        DataError: the level is not in (0, 1).
    """
    quantile = two_sided_quantile(level)
    share_P = np.sort(share_P)
    imagined = np.concatenate([[0.0], share_P, [1.0]])
    centre = imagined.mean()
    effective = 1 + len(imagined) * centre * (1 - centre) / imagined.var(ddof=1)
    # What the imagined problems are worth is taken out again.
    return _wilson(mean(share_P), effective * len(share_P) / len(imagined), quantile)


def difference_interval(difference_P: Floats, level: float = 0.95) -> Interval:
    """Return the interval of a mean of paired per-problem differences, each in [-1, 1].

    With one sample per problem it is the interval of Bonett and Price (2012), "Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data": Wald's,
    after one imagined problem is added that only the first system solves, and one that only the
    second does. With more samples the imagined differences are as large as those of the problems
    that differ (root mean square), one of them imagined to be 1. So n problems that all agree give
    about `z * sqrt(2) / n` on each side, where a bootstrap gives the point 0.

    Raises:
        DataError: the level is not in (0, 1).
    """
    quantile = two_sided_quantile(level)
    total = len(difference_P) + IMAGINED
    centre = math.fsum(difference_P) / total
    variance = imagined_squares(difference_P) / total - centre * centre
    half = quantile * math.sqrt(variance / total)
    value = mean(difference_P)  # at a low level it may lie beyond what the centre reaches
    return Interval(
        min(value, max(-1.0, centre - half)),
        max(value, min(1.0, centre + half)),
    )


def imagined_squares(difference_P: Floats) -> float:
    """Return the sum of squared differences with those of the two imagined problems."""
    squares = math.fsum(difference_P * difference_P)
    differing = int((np.abs(difference_P) > ROUNDING).sum())
    return squares + IMAGINED * (1 + squares) / (1 + differing)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p value that a problem solved by one system is a fair coin.

    The binomial tail of the smaller count, twice. McNemar (1947).
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def sign_flip_p_value(difference_P: Floats, seed: int) -> float:
    """Return the two-sided p value of a mean of 0 when the sign of each difference is a coin.

    The observed pattern counts as one of the random ones, so the p value is never 0 and the test
    keeps its level: Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    size_D = np.sort(np.abs(difference_P[difference_P != 0]))
    reached = abs(math.fsum(difference_P)) - ROUNDING
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(FLIPS // _BATCH):
        sign_BD = 1.0 - 2.0 * generator.integers(0, 2, size=(_BATCH, len(size_D)))
        hits += int((np.abs(sign_BD @ size_D) >= reached).sum())
    return (1 + hits) / (1 + FLIPS)


def paired_differences(first: Samples, second: Samples) -> Floats:
    """Return per problem how much larger the first system's share of right samples is.

    Raises:
        DataError: the numbers of problems differ, or there is nothing to compare.
    """
    if len(first) != len(second):
        raise DataError(
            "two systems can only be compared on the same problems, "
            f"got {len(first)} and {len(second)} problems"
        )
    return problem_shares(first) - problem_shares(second)


def problem_shares(correct: Samples) -> Floats:
    """Return each problem's share of right samples.

    Raises:
        DataError: there are no problems, or a problem has no samples.
    """
    _check_problems(correct)
    return np.array([sum(map(bool, row)) / len(row) for row in correct])


def mean(values_P: Floats) -> float:
    """Return the mean, the same to the last bit in any order of problems."""
    return math.fsum(values_P) / len(values_P)


def two_sided_quantile(level: float) -> float:
    """Return the normal quantile of a two-sided confidence level.

    Raises:
        DataError: the level is not in (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise DataError(f"a confidence level lies between 0 and 1, got {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _check_problems(correct: Samples) -> None:
    if not len(correct):
        raise DataError("there are no problems to average over")
    if not all(len(row) for row in correct):
        empty = next(i for i, row in enumerate(correct) if not len(row))
        raise DataError(
            f"problem {empty} of {len(correct)} has no samples; answer it or leave it out"
        )


def _pass_share(total: int, right: int, k: int) -> float:
    return 1.0 - math.prod(1.0 - k / i for i in range(total - right + 1, total + 1))


def _wilson(share: float, total: float, quantile: float) -> Interval:
    """Return Wilson's interval (1927, eq. 3) of a share of `total` answers, not always whole."""
    weight = quantile * quantile / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight * weight / 4) / (1 + weight)
    # The formula is exact at the ends; rounding must not push it past them.
    low = 0.0 if share <= 0.0 else max(0.0, centre - half)
    high = 1.0 if share >= 1.0 else min(1.0, centre + half)
    return Interval(min(low, share), max(high, share))
