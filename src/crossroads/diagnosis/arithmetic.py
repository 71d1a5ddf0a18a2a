"""What follows from a few reported numbers alone, without any data.

Of all tokens, let b be the base rate (share of positives), r the recall, f the share of the other
tokens that are sent on. Then, by counting, positive_rate = b r + (1 - b) f, and precision =
b r / positive_rate. Everything here is that identity, solved for what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from itertools import product
from statistics import NormalDist

import numpy as np

from crossroads.diagnosis.result import Metrics
from crossroads.training.r2r.protocol import RECALL_GRID

_AGREE = 0.002
"""Base rates that differ by less are the same, computed in another order."""


def positive_rate(base: float, recall: float, false_rate: float) -> float:
    """Return positive_rate from the base rate and the two shares that are sent."""
    return base * recall + (1 - base) * false_rate


def false_rate(rate: float, recall: float, base: float) -> float:
    """Return which share of the negatives is sent; negative where the numbers are impossible."""
    return (rate - base * recall) / (1 - base)


def base_for_rate(rate: float, recall: float, sent_falsely: float) -> float | None:
    """Return the base rate at which a ranking's point (recall, f) gives that positive_rate.

    None where no base rate in [0, 1] does.
    """
    if recall == sent_falsely:
        return None
    base = (rate - sent_falsely) / (recall - sent_falsely)
    return base if 0 <= base <= 1 else None


def least_base(rate: float, other: float, recall: float) -> float | None:
    """Return the least base rate at which a ranking's point can give `rate`, and `other` elsewhere.

    With one (r, f) in both places, other = b0 r + (1 - b0) f is at least f, so rate =
    b r + (1 - b) f needs b >= (rate - other) / (r - other). None unless other < rate and other < r.
    """
    if other >= rate or other >= recall:
        return None
    return (rate - other) / (recall - other)


def base_rates(metrics: Metrics) -> dict[str, float]:
    """Return the base rate as each reported metric implies it, by the metric's name.

    From precision p: b = p PR / r. From f1 = 2 p r / (p + r): p = f1 r / (2 r - f1). From
    accuracy a = b r + 1 - PR - b (1 - r): b = (a - 1 + PR) / (2 r - 1).
    """
    rate, recall = metrics.positive_rate, metrics.recall
    found: dict[str, float] = {}
    if not rate or not recall:
        return found
    if metrics.precision is not None:
        found["precision"] = metrics.precision * rate / recall
    if metrics.f1 is not None and 2 * recall > metrics.f1:
        found["f1"] = metrics.f1 * recall / (2 * recall - metrics.f1) * rate / recall
    if metrics.accuracy is not None and abs(2 * recall - 1) > 0.1:
        found["accuracy"] = (metrics.accuracy - 1 + rate) / (2 * recall - 1)
    return found


def base_rate(metrics: Metrics) -> float | None:
    """Return the implied base rate; None if nothing tells it, or if the metrics disagree."""
    found = base_rates(metrics)
    if not found or contradiction(metrics) is not None:
        return None
    return next(iter(found.values()))


def base_rate_ranges(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest base rate of each metric, its numbers as exact as written.

    A number with d decimals stands for all that round to it: 0.95 for 0.945 to 0.955. A metric
    that tells nothing of some of them (a recall near a half) is left out.
    """
    given = {name: value for name, value in asdict(metrics).items() if value is not None}
    ends = [(value - _half(value), value + _half(value)) for value in given.values()]
    corners = [
        base_rates(Metrics(**dict(zip(given, values, strict=True)))) for values in product(*ends)
    ]
    known = [name for name in base_rates(metrics) if all(name in corner for corner in corners)]
    return {
        name: (min(corner[name] for corner in corners), max(corner[name] for corner in corners))
        for name in known
    }


def _half(value: float) -> float:
    """Return half a unit of the last decimal that a number is written with; 1 is exact."""
    exponent = Decimal(repr(float(value))).normalize().as_tuple().exponent
    return 0.5 * 10.0**exponent if isinstance(exponent, int) and exponent < 0 else 0.0


def contradiction(metrics: Metrics) -> str | None:
    """Return in a sentence how the metrics contradict each other; None if they do not."""
    found, ranges = base_rates(metrics), base_rate_ranges(metrics)
    impossible = [
        name for name, (low, high) in ranges.items() if high < -_AGREE or low > 1 + _AGREE
    ]
    if impossible:
        return f"its {impossible[0]} is impossible together with its positive_rate and recall"
    low, high = _all_agree(ranges)
    if low > high + _AGREE:
        parts = ", ".join(f"{100 * base:.1f} % by its {name}" for name, base in found.items())
        return f"its metrics imply different base rates ({parts}): they are not of one set of rows"
    return None


def contradiction_between(final: Metrics, before: Metrics) -> str | None:
    """Return in a sentence that two thresholds of one result imply different base rates."""
    first, second = base_rate(final), base_rate(before)
    if first is None or second is None:
        return None
    (low, high), (other_low, other_high) = (
        _all_agree(base_rate_ranges(metrics)) for metrics in (final, before)
    )
    if max(low, other_low) <= min(high, other_high) + _AGREE:
        return None
    return (
        f"its metrics imply a base rate of {100 * first:.1f} % at the chosen threshold and of "
        f"{100 * second:.1f} % before it was chosen, which cannot both be of the same rows"
    )


def _all_agree(ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return the base rates that all metrics allow, any if there is none."""
    lows, highs = zip((0.0, 1.0), *ranges.values(), strict=True)
    return max(lows), min(highs)


def most_noise(rate: float, recall: float) -> float:
    """Return the largest share of positives that can be labelled so at random.

    A positive that has nothing to do with what the router sees is caught as often as any token:
    with probability positive_rate. If the router caught all others, recall = (1 - n) + n rate.
    """
    return min(1.0, (1 - recall) / (1 - rate)) if rate < 1 else 1.0


def prompt_share(rate: float, reported: float) -> float | None:
    """Return what share of the counted tokens must be never-sent ones to turn rate into reported.

    None where adding tokens that are never sent cannot do it.
    """
    return 1 - reported / rate if 0 < reported <= rate else None


def separation(recall: float, sent_falsely: float) -> float | None:
    """Return how many standard deviations apart positives and negatives score.

    A number of the ranking alone, free of base rates, if both scores were normal with one
    deviation: d' = z(recall) - z(f) (Green and Swets 1966).
    """
    if not (0 < recall < 1 and 0 < sent_falsely < 1):
        return None
    normal = NormalDist()
    return normal.inv_cdf(recall) - normal.inv_cdf(sent_falsely)


def grid_index(threshold: float) -> int | None:
    """Return which of R2R's grid thresholds this is, from 0; None if none, to four decimals."""
    index = int(np.abs(RECALL_GRID - threshold).argmin())
    return index if abs(float(RECALL_GRID[index]) - threshold) < 1e-4 else None


def constant_loss(base: float, recall_factor: float = 1.0) -> float:
    """Return the weighted loss of the best constant score: what a router that learned nothing has.

    R2R weighs positives by w = recall_factor (1 - b) / b. The constant q minimises
    -(w b log q + (1 - b) log(1 - q)), so q = w b / (w b + 1 - b); with recall_factor 1 that is
    2 (1 - b) log 2.
    """
    positives, negatives = recall_factor * (1 - base), 1 - base
    q = positives / (positives + negatives)
    return -(positives * math.log(q) + negatives * math.log(1 - q))
