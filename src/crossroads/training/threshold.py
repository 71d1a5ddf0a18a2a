"""Exact thresholds: taken from the calibration scores themselves, never from a grid.

Every function works on the scores' own values, so ties are all sent or all kept. Shapes: N scored
tokens, L levels (thresholds that make a difference), C problems, R resamples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.names import nearest
from crossroads.routing.policy import sends_to_large

NEVER = 1.5
"""A threshold that no score reaches."""
CLUSTERED, INDEPENDENT = "cluster-bootstrap", "clopper-pearson"
METHODS = (CLUSTERED, INDEPENDENT)
_ROUNDING = 1e-9  # forgives the rounding of e.g. 0.95 * 20, which asks for 19 tokens and not 20
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold does on a set of scored tokens. `positives` are the divergent ones."""

    threshold: float
    recall: float
    positive_rate: float
    positives: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Levels:
    """Every threshold that makes a difference, descending from NEVER, and what it does.

    sent_L, caught_L: tokens, and positives among them, with score >= threshold_L.
    """

    threshold_L: np.ndarray
    sent_L: np.ndarray
    caught_L: np.ndarray


def operating_point(scores: np.ndarray, divergent: np.ndarray, threshold: float) -> OperatingPoint:
    """Return recall and positive_rate of a threshold. Recall is 0 where nothing is divergent."""
    sent = sends_to_large(scores, threshold)
    positives = int(divergent.sum())
    caught = int((sent & divergent).sum())
    return OperatingPoint(
        threshold=float(threshold),
        recall=caught / positives if positives else 0.0,
        positive_rate=float(sent.mean()),
        positives=positives,
        tokens=len(scores),
    )


def levels(scores: np.ndarray, positive: np.ndarray) -> Levels:
    """Return all thresholds that differ in what they send.

    Raises:
        DataError: no scores, or some that are not finite.
    """
    _check_scores(scores)
    order = np.argsort(scores, kind="stable")[::-1]
    descending = scores[order]
    last = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
    caught = positive[order].astype(np.int64).cumsum()
    return Levels(
        threshold_L=np.concatenate([[NEVER], descending[last].astype(np.float64)]),
        sent_L=np.concatenate([[0], last + 1]),
        caught_L=np.concatenate([[0], caught[last]]),
    )


def threshold_for_recall(scores: np.ndarray, divergent: np.ndarray, min_recall: float) -> float:
    """Return the highest threshold that still sends `min_recall` of the divergent tokens on.

    A token is sent to the large model when `score >= threshold`; highest means fewest calls.

    Raises:
        ConfigError: min_recall is outside (0, 1]. DataError: no token is divergent.
    """
    check_recall(min_recall)
    descending = positive_scores(scores, divergent)
    needed = int(np.ceil(min_recall * len(descending) - _ROUNDING))
    return float(descending[max(needed, 1) - 1])


def threshold_for_positive_rate(scores: np.ndarray, max_positive_rate: float) -> float:
    """Return the lowest threshold that sends at most `max_positive_rate` of the tokens on.

    Raises:
        ConfigError: the budget is outside [0, 1].
    """
    if not 0 <= max_positive_rate <= 1:
        raise ConfigError(f"the positive_rate budget must be in [0, 1], got {max_positive_rate}")
    _check_scores(scores)
    values, counts = np.unique(scores, return_counts=True)
    sent_from = counts[::-1].cumsum()[::-1]
    allowed = values[sent_from <= max_positive_rate * len(scores) + _ROUNDING]
    return float(allowed[0]) if len(allowed) else NEVER


def threshold_for_f1(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the threshold of the best F1, the highest of equals.

    F1 = 2 caught / (sent + positives); equal fractions are equal floats, so ties are exact.

    Raises:
        DataError: no token is divergent.
    """
    total = len(positive_scores(scores, positive))
    found = levels(scores, positive)
    best = int((2 * found.caught_L / (found.sent_L + total)).argmax())
    return float(found.threshold_L[best])


def threshold_for_cost(
    scores: np.ndarray, positive: np.ndarray, miss_cost: float, call_cost: float
) -> float:
    """Return the threshold of the least expected cost, the highest of equals.

    A missed positive costs `miss_cost`, a token that is sent `call_cost`. NEVER where no call is
    worth what it costs.

    Raises:
        ConfigError: a cost is negative or not finite, or both are 0. DataError: no token is
            divergent.
    """
    check_costs(miss_cost, call_cost)
    total = len(positive_scores(scores, positive))
    found = levels(scores, positive)
    costs_L = (total - found.caught_L) * miss_cost + found.sent_L * call_cost
    # Sums that differ by rounding alone are equal; a whole token is far more than this.
    best = int((costs_L <= costs_L.min() * (1 + 1e-12)).argmax())
    return float(found.threshold_L[best])


def clopper_pearson_lower(caught: float, total: float, confidence: float) -> float:
    """Return the exact one-sided lower bound of a binomial share; counts may be fractions.

    Clopper and Pearson, "The use of confidence or fiducial limits", 1934: the quantile
    1 - confidence of Beta(caught, total - caught + 1).
    """
    from scipy.stats import beta  # noqa: PLC0415  takes a second, and few need it

    return float(beta.ppf(1 - confidence, caught, total - caught + 1)) if caught > 0 else 0.0


def guaranteed_threshold(
    scores: np.ndarray,
    positive: np.ndarray,
    problem: np.ndarray,
    min_recall: float,
    confidence: float = 0.95,
    method: str = CLUSTERED,
    seed: int = 0,
) -> float:
    """Return the highest threshold whose lower confidence bound on recall meets the target.

    What is guaranteed: over calibration sets drawn as this one was, the recall on new tokens is
    below the target with probability at most 1 - confidence. The threshold is chosen from the
    data, and yet one bound per threshold is enough: thresholds are tested from the lowest upward
    and the first failure ends the test (fixed-sequence testing: Angelopoulos et al., "Learn then
    Test", arXiv 2110.01052); since recall never rises with the threshold, a wrong choice means
    that the bound failed at one threshold that does not depend on the data, the highest that is
    good enough (Bates et al., "Distribution-Free, Risk-Controlling Prediction Sets",
    arXiv 2101.02703, theorem 1).

    What is not: the bound of `clopper-pearson` is exact for positives that are independent of one
    another, which tokens of one problem are not; too few problems then make it too optimistic.
    `cluster-bootstrap` puts an effective number of positives into the same bound: their number
    over the design effect (variance of recall when whole problems are resampled over the variance
    of independent tokens, at the plain threshold of the target) and over a factor for few problems
    (Korn and Graubard, "Confidence intervals for proportions with small expected number of
    positive counts", 1998). The design effect is an estimate, so this holds approximately.
    Neither holds for problems of another kind than those of the calibration split.

    Args:
        scores: [N], in [0, 1].
        positive: [N], bool.
        problem: [N], integers; the cluster of each token.
        min_recall: in (0, 1].
        confidence: in (0.5, 1).
        method: one of METHODS.
        seed: of the resamples.

    Raises:
        ConfigError: a setting out of range.
        DataError: no token is divergent, or so few that no threshold meets the target; says how
            many are needed.
    """
    check_recall(min_recall)
    check_guarantee(confidence, method)
    descending = positive_scores(scores, positive)
    plain = threshold_for_recall(scores, positive, min_recall)
    total, share = len(descending), 1.0
    if method == CLUSTERED:
        caught = sends_to_large(scores, plain) & positive
        share = _effective_share(caught[positive], problem[positive], confidence, seed)
    effective = share * total

    def bound(caught: int) -> float:
        return clopper_pearson_lower(caught * share, effective, confidence)

    if bound(total) < min_recall:
        raise DataError(
            _too_few(total, len(np.unique(problem[positive])), effective, min_recall, confidence)
        )
    first = max(int(np.ceil(min_recall * total - _ROUNDING)), 1)
    needed = first + bisect_left(range(first, total), min_recall, key=bound)
    return min(plain, float(descending[needed - 1]))


def _effective_share(
    caught: np.ndarray, problem: np.ndarray, confidence: float, seed: int
) -> float:
    """Return how many independent tokens one positive counts for, at most 1."""
    from scipy.stats import t as student  # noqa: PLC0415  takes a second, and few need it

    _, problem = np.unique(problem, return_inverse=True)
    total_C = np.bincount(problem)
    problems, tokens = len(total_C), len(problem)
    if problems < 2:
        raise DataError(
            "the divergent tokens are of one problem, which guarantees nothing for others; label "
            "more problems"
        )
    caught_C = np.bincount(problem, weights=caught)
    order = np.lexsort((total_C, caught_C))  # the draws must not depend on the problems' order
    caught_C, total_C = caught_C[order], total_C[order]
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(problems, size=problems) for _ in range(_RESAMPLES))
    recall_R = np.array([caught_C[d].sum() / total_C[d].sum() for d in drawn])
    recall = caught.mean()
    independent = recall * (1 - recall) / tokens
    clustered = recall_R.var() * problems / (problems - 1)
    effect = max(1.0, clustered / independent) if independent > 0 else 1.0
    few = student.ppf(confidence, tokens - 1) / student.ppf(confidence, problems - 1)
    return float(min(1.0, few**2 / effect))


def _too_few(
    total: int, problems: int, effective: float, min_recall: float, confidence: float
) -> str:
    here = f"no threshold guarantees {100 * min_recall:g} % recall with {100 * confidence:g} % "
    here += f"confidence: there are {total} divergent tokens in {problems} problems"
    if min_recall == 1:
        return f"{here}, and no number of tokens guarantees that none is missed; ask for less"
    needed = math.ceil(math.log(1 - confidence) / math.log(min_recall))
    if effective < total:
        here += f" (worth {effective:.0f} independent ones)"
    return (
        f"{here}, and at least {needed} independent ones are needed even if all are caught "
        f"(about {math.ceil(problems * needed / effective)} problems like these); label more "
        "problems or ask for less"
    )


def positive_scores(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the positives' scores, descending; refuse data without any."""
    _check_scores(scores)
    descending: np.ndarray = np.sort(scores[positive.astype(bool)])[::-1]
    if not len(descending):
        raise DataError("no token is divergent, so no threshold can be chosen; label more problems")
    return descending


def _check_scores(scores: np.ndarray) -> None:
    if not len(scores):
        raise DataError("there are no scores to choose a threshold from")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} scores are not finite numbers")


def check_recall(recall: float) -> None:
    """Refuse a recall that no threshold can have.

    Raises:
        ConfigError: says the values that are possible.
    """
    if not 0 < recall <= 1:
        raise ConfigError(f"the recall target must be in (0, 1], got {recall}")


def check_costs(miss_cost: float, call_cost: float) -> None:
    """Refuse costs that are none.

    Raises:
        ConfigError: says the values that are possible.
    """
    costs = (miss_cost, call_cost)
    if not all(math.isfinite(c) and c >= 0 for c in costs) or not any(costs):
        raise ConfigError(
            f"costs must be numbers >= 0 and not both 0, got miss {miss_cost} and call {call_cost}"
        )


def check_guarantee(confidence: float, method: str) -> None:
    """Refuse a confidence or method that there is not.

    Raises:
        ConfigError: says the values that are possible.
    """
    if not 0.5 < confidence < 1:
        raise ConfigError(f"the confidence of a guarantee must be in (0.5, 1), got {confidence}")
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r} of a guarantee; {nearest(method, METHODS)}")


# What a threshold is chosen for, as one types it
