"""What routing is worth: the share of the gap recovered, and accuracy at equal large_fraction.

Both are smooth functions of means over problems, with intervals in closed form: every problem
carries all that it says about numerator and denominator, so these are never drawn apart, and no
resample exists whose denominator would have to be dropped. Shapes: P problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossroads.errors import DataError
from crossroads.evaluation.statistics import (
    IMAGINED,
    SIGN_FLIP,
    Comparison,
    Floats,
    Samples,
    difference_interval,
    imagined_squares,
    mean,
    paired_differences,
    problem_shares,
    sign_flip_p_value,
    two_sided_quantile,
)
from crossroads.statistics import Difference, Interval

NEAR = 0.25
"""How far the nearest threshold of a heuristic may lie from a router's large_fraction, as a share
of it. Accuracy rises the more steeply the fewer tokens were sent, so a straight line from a far
threshold to the small model alone lies below what the heuristic would answer."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The share of `gap` (large - small) that a mixed system recovers.

    `value` and `interval` are None where the share means nothing, and `reason` says why.
    """

    value: float | None
    interval: Interval | None
    gap: Difference
    reason: str | None


@dataclass(frozen=True, slots=True)
class RoutedAnswers:
    """One system at one threshold: per problem its samples, and their tokens in all.

    Raises:
        DataError: the three differ in length, a problem has no samples, a problem has more tokens
            of the large model than tokens, or there are no tokens.
    """

    correct: Samples
    large_tokens: Sequence[int]
    generated_tokens: Sequence[int]

    def __post_init__(self) -> None:
        lengths = len(self.correct), len(self.large_tokens), len(self.generated_tokens)
        if len(set(lengths)) > 1:
            raise DataError(
                "routed answers need samples, large tokens and generated tokens of every problem, "
                f"got {lengths[0]}, {lengths[1]} and {lengths[2]}"
            )
        problem_shares(self.correct)
        counts = zip(self.large_tokens, self.generated_tokens, strict=True)
        if not all(0 <= large <= generated for large, generated in counts):
            raise DataError("a problem has more tokens of the large model than tokens; check both")
        if not sum(self.generated_tokens):
            raise DataError("no tokens were generated, so there is no large_fraction")

    @property
    def large_fraction(self) -> float:
        """Share of the generated tokens that the large model wrote."""
        return sum(self.large_tokens) / sum(self.generated_tokens)


@dataclass(frozen=True, slots=True)
class TradeOff:
    """A system against another one's curve, at the system's own large_fraction.

    `comparison` is None where the curve has no point to compare with, and `reason` says why.
    """

    large_fraction: float
    comparison: Comparison | None
    reason: str | None


def recovered_gap(mixed: Samples, small: Samples, large: Samples, level: float = 0.95) -> Gap:
    """Return `(mixed - small) / (large - small)` in avg@k over the same problems.

    The interval is Fieller's (1954), "Some problems in interval estimation": all shares g for which
    the mean of `mixed - small - g (large - small)` is not significantly different from 0. It is
    finite exactly if the interval of `large - small` excludes 0. A percentile bootstrap has to do
    something with resamples without a gap, and whatever it does changes the tails. The variances
    are those of `difference_interval`, imagined problems included.

    Raises:
        DataError: the numbers of problems differ, or there are none.
    """
    gain_P, gap_P = paired_differences(mixed, small), paired_differences(large, small)
    gap = Difference(mean(gap_P), difference_interval(gap_P, level))
    reason = _no_gap(gap.interval, len(gap_P))
    if reason:
        return Gap(None, None, gap, reason)
    return Gap(mean(gain_P) / gap.value, _fieller(gain_P, gap_P, level), gap, None)


def against_heuristic(
    system: RoutedAnswers, run: Sequence[RoutedAnswers], alone: Sequence[RoutedAnswers], seed: int
) -> TradeOff:
    """Return `trade_off_difference` from a heuristic's curve where it was run near enough.

    Args:
        system: a router at one threshold.
        run: the heuristic at every threshold at which it was run, at least one.
        alone: the models alone, the curve's ends.
        seed: for the p value.

    Raises:
        DataError: the numbers of problems differ, or there are none.
    """
    fraction = system.large_fraction
    nearest = min((p.large_fraction for p in run), key=lambda other: abs(other - fraction))
    if abs(nearest - fraction) > NEAR * fraction > 0:  # at 0 it is the small model alone
        return TradeOff(
            fraction,
            None,
            f"the nearest large_fraction at which it was run is {nearest:.3f}, too far to tell; "
            f"add it with ~{fraction:.3f}",
        )
    return trade_off_difference(system, [*alone, *run], seed)


def trade_off_difference(
    system: RoutedAnswers, curve: Sequence[RoutedAnswers], seed: int, level: float = 0.95
) -> TradeOff:
    """Return the accuracy of a system less that of a curve at the same large_fraction.

    The curve is another system at several thresholds on the same problems; between the two points
    around the system's large_fraction its accuracy is interpolated linearly. Interval and p value
    come from jackknife pseudo-values (Tukey 1958, "Bias and confidence in not quite large
    samples"): leaving out a problem changes accuracies and fractions together. Where the fraction
    is that of a point of the curve they are those of `compare` but for the fractions' own
    uncertainty. `seed` is for the sign flips of the p value.

    Raises:
        DataError: the numbers of problems differ, or there are none.
    """
    _check_same_problems(system, curve)
    fraction = system.large_fraction
    points = sorted(curve, key=lambda point: (point.large_fraction, mean(_shares(point))))
    around = _around(fraction, points)
    if around is None:
        return TradeOff(fraction, None, _out_of_range(fraction, points))
    pseudo_P = _pseudo_values(system, *around)
    if pseudo_P is None:
        return TradeOff(
            fraction,
            None,
            f"one of the {len(system.correct)} problems alone decides the large_fractions to be "
            "compared; evaluate more problems",
        )
    interval = difference_interval(pseudo_P, level)
    p_value = sign_flip_p_value(pseudo_P, seed)
    return TradeOff(fraction, Comparison(mean(pseudo_P), interval, p_value, SIGN_FLIP), None)


def _no_gap(interval: Interval, problems: int) -> str | None:
    if interval.low > 0.0:
        return None
    bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f} points on {problems} problems"
    if interval.high < 0.0:
        return f"the large model is worse than the small one ({bounds}): there is no gap to recover"
    return (
        f"large - small is {bounds}, which includes 0: a share of it means nothing; "
        "evaluate more problems"
    )


def _fieller(gain_P: Floats, gap_P: Floats, level: float) -> Interval:
    """Return the g with `(b - g a)^2 <= z^2 var(gain - g gap)`: the roots of a quadratic."""
    total = len(gap_P) + IMAGINED
    factor = two_sided_quantile(level) ** 2 / total
    a, b = math.fsum(gap_P) / total, math.fsum(gain_P) / total
    # The imagined problems have every combination of signs, so they add nothing to the product.
    product = math.fsum(gain_P * gap_P) / total - a * b
    square = a * a - factor * (imagined_squares(gap_P) / total - a * a)
    linear = a * b - factor * product
    constant = b * b - factor * (imagined_squares(gain_P) / total - b * b)
    root = math.sqrt(max(0.0, linear * linear - square * constant))
    return Interval((linear - root) / square, (linear + root) / square)


def _check_same_problems(system: RoutedAnswers, curve: Sequence[RoutedAnswers]) -> None:
    if not curve:
        raise DataError("a curve needs at least one threshold to compare with")
    problems = len(system.correct)
    other = next((len(p.correct) for p in curve if len(p.correct) != problems), None)
    if other is not None:
        raise DataError(
            "a system can only be compared with a curve on the same problems, "
            f"got {problems} and {other} problems"
        )


def _around(
    fraction: float, points: Sequence[RoutedAnswers]
) -> tuple[RoutedAnswers, RoutedAnswers] | None:
    """Return the points below and above a large_fraction, which may be that of one of them."""
    below = [point for point in points if point.large_fraction <= fraction]
    above = [point for point in points if point.large_fraction > fraction]
    if above:
        return (below[-1], above[0]) if below else None
    # At the top of the curve the slope is that of its last stretch.
    top = below[-1].large_fraction
    before = [point for point in below if point.large_fraction < top]
    return (before[-1], below[-1]) if top == fraction and before else None


def _out_of_range(fraction: float, points: Sequence[RoutedAnswers]) -> str:
    low, high = points[0].large_fraction, points[-1].large_fraction
    if low == high:
        return f"the curve has one large_fraction only, {low:.3f}; add thresholds on both sides"
    return (
        f"large_fraction {fraction:.3f} is outside of the curve's {low:.3f} to {high:.3f}; "
        "add a threshold beyond it"
    )


def _pseudo_values(
    system: RoutedAnswers, below: RoutedAnswers, above: RoutedAnswers
) -> Floats | None:
    """Return per problem what it says of the difference, with the difference as their mean.

    None where the fractions do not survive leaving out one problem.
    """
    system_P, below_P, above_P = map(_left_out_fractions, (system, below, above))
    if np.isnan(system_P).any() or not (above_P > below_P).all():
        return None
    problems = len(system_P)
    weight_P = (system_P - below_P) / (above_P - below_P)
    low_P, high_P = _left_out_means(below), _left_out_means(above)
    without_P = _left_out_means(system) - low_P - weight_P * (high_P - low_P)
    low, high = below.large_fraction, above.large_fraction
    weight = (system.large_fraction - low) / (high - low)
    low_share, high_share = mean(_shares(below)), mean(_shares(above))
    whole = mean(_shares(system)) - low_share - weight * (high_share - low_share)
    return whole + (problems - 1) * (mean(without_P) - without_P)


def _left_out_means(point: RoutedAnswers) -> Floats:
    share_P = _shares(point)
    return (math.fsum(share_P) - share_P) / (len(share_P) - 1)


def _left_out_fractions(point: RoutedAnswers) -> Floats:
    """Return the large_fraction without each problem; nan where no tokens are left."""
    large_P = np.asarray(point.large_tokens, dtype=np.float64)
    generated_P = np.asarray(point.generated_tokens, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        fraction_P: Floats = (large_P.sum() - large_P) / (generated_P.sum() - generated_P)
    return fraction_P


def _shares(point: RoutedAnswers) -> Floats:
    return problem_shares(point.correct)
