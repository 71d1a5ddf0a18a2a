"""What a threshold is chosen for, as people write it: `recall=0.95`, `cost=miss:10,call:1`.

Every choice is exact on the scores it is made from. A guarantee asks more: that the *lower
confidence bound* of recall on other problems meets the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.names import nearest
from crossroads.routing.policy import sends_to_large
from crossroads.training.ranking import Ranking
from crossroads.training.threshold import (
    NEVER,
    threshold_for_positive_rate,
    threshold_for_recall,
)

KINDS = ("recall", "positive_rate", "f1", "cost", "guarantee")
METHODS = ("clustered", "clopper-pearson", "bootstrap")


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of KINDS with its numbers.

    value: recall (recall, guarantee), or the largest positive_rate. miss, call: what a divergent
    token that is kept, and a token that is sent, cost. confidence, method: of a guarantee.
    """

    kind: str
    value: float = 0.0
    miss: float = 0.0
    call: float = 0.0
    confidence: float = 0.95
    method: str = "clustered"

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            ConfigError: names the number.
        """
        if self.kind not in KINDS:
            raise ConfigError(f"unknown target {self.kind!r}; {nearest(self.kind, KINDS)}")
        if self.kind in ("recall", "guarantee") and not 0 < self.value <= 1:
            raise ConfigError(f"a target recall must be in (0, 1], got {self.value:g}")
        if self.kind == "positive_rate" and not 0 <= self.value <= 1:
            raise ConfigError(f"a positive_rate budget must be in [0, 1], got {self.value:g}")
        if self.kind == "cost" and not (self.miss > 0 and self.call > 0):
            raise ConfigError(
                "a cost target needs both prices above 0, as in cost=miss:10,call:1; got "
                f"miss {self.miss:g}, call {self.call:g}"
            )
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"a confidence must be in [0.5, 1), got {self.confidence:g}")
        if self.method not in METHODS:
            raise ConfigError(
                f"unknown guarantee method {self.method!r}; {nearest(self.method, METHODS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target that a text names.

        Raises:
            ConfigError: it cannot be read; says how targets look.
        """
        kind, _, rest = text.strip().partition("=")
        parts = [part.strip() for part in rest.split(",") if part.strip()]
        if kind == "f1" and not parts:
            return cls("f1")
        if kind == "cost":
            prices = _pairs(text, parts, ":")
            return cls(
                "cost", miss=_number(text, prices, "miss"), call=_number(text, prices, "call")
            )
        if kind not in KINDS or kind == "f1" or not parts:
            raise _unreadable(text)
        options = _pairs(text, parts[1:], "=")
        unknown = set(options) - ({"confidence", "method"} if kind == "guarantee" else set())
        if unknown:
            raise _unreadable(text)
        given = {"value": parts[0], **options}
        confidence = _number(text, given, "confidence") if "confidence" in given else 0.95
        return cls(
            kind,
            _number(text, given, "value"),
            confidence=confidence,
            method=given.get("method", "clustered"),
        )

    def __str__(self) -> str:
        """Return the target in words."""
        words = {
            "recall": f"{100 * self.value:g} % recall",
            "positive_rate": f"at most {100 * self.value:g} % of the tokens",
            "f1": "the best F1",
            "cost": f"the least cost (miss {self.miss:g}, call {self.call:g})",
            "guarantee": f"{100 * self.value:g} % recall with {100 * self.confidence:g} % "
            f"confidence ({self.method})",
        }
        return words[self.kind]


def choose_threshold(
    target: Target, scores: np.ndarray, positive: np.ndarray, problem: np.ndarray, seed: int = 0
) -> float:
    """Return the target's threshold on scored rows [N]; `seed` matters to a bootstrap alone.

    Raises:
        DataError: no positive token, or a guarantee that so few cannot give.
    """
    if target.kind == "recall":
        return threshold_for_recall(scores, positive, target.value)
    if target.kind == "positive_rate":
        return threshold_for_positive_rate(scores, target.value)
    if target.kind == "f1":
        return threshold_for_f1(scores, positive)
    if target.kind == "cost":
        return threshold_for_cost(scores, positive, target.miss, target.call)
    return guaranteed_threshold(
        scores, positive, problem, target.value, target.confidence, target.method, seed
    )


def threshold_for_f1(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the threshold with the best F1, 2 TP / (TP + FP + P); of equals the highest.

    Raises:
        DataError: no token is positive, or a score is not finite.
    """
    threshold_T, sent_T, caught_T = _steps(scores, positive)
    if not positive.any():
        raise DataError("no token is positive, so there is no F1; label more problems")
    return float(threshold_T[np.argmax(2 * caught_T / (sent_T + positive.sum()))])


def threshold_for_cost(scores: np.ndarray, positive: np.ndarray, miss: float, call: float) -> float:
    """Return the threshold with the least `miss * positives kept + call * tokens sent`.

    Of equals the highest; NEVER where sending nothing is cheapest.

    Raises:
        DataError: a score is not finite.
    """
    threshold_T, sent_T, caught_T = _steps(scores, positive)
    cost_T = miss * (positive.sum() - caught_T) + call * sent_T
    best = int(np.argmin(cost_T))
    return NEVER if miss * positive.sum() <= cost_T[best] else float(threshold_T[best])


def guaranteed_threshold(
    scores: np.ndarray,
    positive: np.ndarray,
    problem: np.ndarray,
    min_recall: float,
    confidence: float = 0.95,
    method: str = "clustered",
    seed: int = 0,
) -> float:
    """Return the highest threshold whose one-sided lower bound on recall is `min_recall` or more.

    Bounds fall as the threshold rises, so the highest one that passes is what fixed-sequence
    testing from the lowest up would stop at, and choosing it from these very rows keeps the
    confidence ("Learn then test", Angelopoulos et al., arXiv 2110.01052). It speaks of other
    problems like these; of other data it says nothing.

    method: `clopper-pearson` takes tokens as independent. `clustered` is Clopper-Pearson at the
    effective number of tokens n / deff (Korn and Graubard 1998), the design effect deff estimated
    from the problems at the threshold of the plain recall, at least 1. `bootstrap` takes the
    quantile of recall over resampled problems; with few problems it is optimistic.

    Raises:
        DataError: not even sending every token gives that confidence; says how many tokens would.
    """
    plain = threshold_for_recall(scores, positive, min_recall)
    threshold_T, _, caught_T = _steps(scores, positive)
    total = int(positive.sum())
    if method == "bootstrap":
        lower_T = _bootstrap_bounds(scores, positive, problem, threshold_T, confidence, seed)
    else:
        deff = 1.0
        if method == "clustered":
            deff = design_effect(sends_to_large(scores, plain), positive, problem)
        lower_T = lower_bounds(caught_T / deff, total / deff, confidence)
    # With few problems a skewed bootstrap may exceed what these very rows have.
    passing = np.flatnonzero(np.minimum(lower_T, caught_T / total) >= min_recall)
    if not len(passing):
        # With all of n caught the bound is (1 - confidence)^(1 / n).
        needed = math.ceil(math.log(1 - confidence) / math.log(min_recall)) if min_recall < 1 else 0
        more = f"at least {needed} independent ones" if needed else "no number of them"
        raise DataError(
            f"{total} positive tokens cannot guarantee {100 * min_recall:g} % recall with "
            f"{100 * confidence:g} % confidence ({more} would do); label more problems or ask "
            "for less"
        )
    return float(threshold_T[passing[0]])


def lower_bounds(caught_T: np.ndarray, total: float, confidence: float) -> np.ndarray:
    """Return the one-sided Clopper-Pearson bounds of shares; counts need not be whole."""
    from scipy.stats import beta  # noqa: PLC0415  slow to import

    with np.errstate(invalid="ignore"):
        bound_T: np.ndarray = beta.ppf(1 - confidence, caught_T, total - caught_T + 1)
    return np.where(caught_T > 0, bound_T, 0.0)


def design_effect(sent: np.ndarray, positive: np.ndarray, problem: np.ndarray) -> float:
    """Return how much the variance of recall exceeds that of independent tokens, at least 1.

    Variance of a ratio over clusters (linearised), over p (1 - p) / n. Where every positive is
    caught, tokens of one problem count as one: the mean number of positives per problem.
    """
    _, at = np.unique(problem, return_inverse=True)
    positives_C = np.bincount(at, weights=positive)
    caught_C = np.bincount(at, weights=sent & positive)
    positives_C, caught_C = positives_C[positives_C > 0], caught_C[positives_C > 0]
    total, clusters = positives_C.sum(), len(positives_C)
    share = caught_C.sum() / total
    if clusters < 2 or share in (0.0, 1.0):
        return float(total / clusters)
    residual_C = caught_C - share * positives_C
    variance = clusters / (clusters - 1) * (residual_C**2).sum() / total**2
    return float(max(1.0, variance * total / (share * (1 - share))))


def _bootstrap_bounds(
    scores: np.ndarray,
    positive: np.ndarray,
    problem: np.ndarray,
    threshold_T: np.ndarray,
    confidence: float,
    seed: int,
) -> np.ndarray:
    ranking = Ranking.of(scores, positive, problem)
    recall_TR = ranking.recalls(ranking.weights(seed))
    bound_T = np.nanquantile(recall_TR, 1 - confidence, axis=1)
    # Between two scores of positives recall does not change.
    at_T = np.searchsorted(-ranking.thresholds_T, -threshold_T, side="right") - 1
    return np.where(at_T >= 0, bound_T[at_T.clip(0)], 0.0)


def _steps(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores, descending, with the tokens and positives at or above each."""
    if not len(scores):
        raise DataError("there are no scores to choose a threshold from")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} scores are not finite numbers")
    threshold_T, at = np.unique(scores, return_inverse=True)
    sent_T = np.bincount(at)[::-1].cumsum()
    caught_T = np.bincount(at, weights=positive)[::-1].cumsum()
    return threshold_T[::-1], sent_T, caught_T


def _pairs(text: str, parts: list[str], separator: str) -> dict[str, str]:
    found = {}
    for part in parts:
        key, there, value = part.partition(separator)
        if not there:
            raise _unreadable(text)
        found[key.strip()] = value.strip()
    return found


def _number(text: str, values: Mapping[str, str], name: str) -> float:
    try:
        return float(values[name])
    except (KeyError, ValueError):
        raise _unreadable(text) from None


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"cannot read the target {text!r}; give recall=0.95, positive_rate=0.12, f1, "
        "cost=miss:10,call:1 or guarantee=0.95[,confidence=0.9][,method=clopper-pearson]"
    )
