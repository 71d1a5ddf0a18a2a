"""Does the router see what it was calibrated on? Live scores beside those of its card.

Two populations meet here. The card's numbers are of the calibration split, tokens on the large
model's own path; live tokens stand on mixed paths, of whatever prompts the server gets. Some
distance between them is no fault of anyone's. A large one says that the card's recall cannot be
counted on for this traffic: labels are needed to tell, and scores alone never do.

Shapes: N live tokens, Q quantiles, E inner edges, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossroads.errors import ConfigError, RouterError
from crossroads.routing.checkpoint import RouterCard
from crossroads.routing.policy import sends_to_large
from crossroads.statistics import Interval

MIN_TOKENS = 1_000
"""Live tokens below which there is no verdict."""
PSI_DRIFTED = 0.25
"""The population stability index from which credit scoring speaks of another population."""
DESIGN_EFFECT = 6.0
"""Tokens that weigh as much as one independent token; 5.6 in the card of the package's router."""
BINS = 10
_LEVEL_95 = 1.96

_FLOATS = NDArray[np.float64]


class Verdict(StrEnum):
    """Whether live scores are those of the calibration. DRIFTED does not say why they are not."""

    TOO_FEW = "too few tokens"
    AS_CALIBRATED = "as calibrated"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """Scores above `low` and up to `high`: the calibration's share of tokens, and the live one.

    The first bin holds its `low`, 0, too. `live` is None before the first token.
    """

    low: float
    high: float
    calibration: float
    live: float | None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Live scores beside the card's; shares are in [0, 1], None before the first token.

    tokens: seen since the start. window: how many of them, the last ones, all the rest is of.
    live_positive_rate: share of live scores that the router's own threshold sends to the large
    model, to compare with promised_positive_rate. live_large_fraction: share of the same tokens
    that the large model wrote, at the thresholds and limits of their requests; another number.
    psi: population stability index. ks_distance: Kolmogorov-Smirnov, known to about 0.01.
    """

    tokens: int
    window: int
    threshold: float
    promised_positive_rate: float
    promised_interval: Interval
    live_positive_rate: float | None
    live_large_fraction: float | None
    psi: float | None
    ks_distance: float | None
    bins: tuple[ScoreBin, ...]
    verdict: Verdict
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "verdict": self.verdict.value}


class DriftMonitor:
    """The last `window` scores of mixed generations, and how far they are from the card's.

    The verdict is "drifted" where at least MIN_TOKENS tokens show one of two things:

    - A PSI above PSI_DRIFTED, the bound in common use (Lewis, "An Introduction to Credit
      Scoring", 1994). Chance adds about `bins - 1` over the number of independent tokens to a PSI
      (chi-squared; Yurdakul, "Statistical properties of population stability index", 2018). The
      tokens of one answer resemble each other: 1,000 of them are worth some 170. By chance such a
      window has a PSI of 0.05, and one above 0.17 in a thousandth of the cases.
    - A live positive_rate further from the promised one than twice the width of the promised
      interval, plus what chance does to as many correlated tokens as the window has (95 %).

    Both are sizes, not tests: the p-value of a Kolmogorov-Smirnov test, which takes every token
    for independent, falls to 0 with any traffic that is long enough. The distance is reported, and
    decides nothing.
    """

    def __init__(
        self,
        quantiles: Sequence[float],
        threshold: float,
        positive_rate: float,
        positive_rate_interval: tuple[float, float],
        *,
        window: int = 20_000,
        design_effect: float = DESIGN_EFFECT,
    ) -> None:
        """Watch for a router whose calibration scores have these quantiles, evenly spaced.

        The smallest and the largest score are the first and the last of them. `positive_rate` is
        the promised one at `threshold`, with its 95 % interval. `design_effect`: how many
        correlated tokens weigh as much as an independent one.

        Raises:
            ConfigError: a window too short for a verdict. RouterError: no quantiles of scores.
        """
        if window < MIN_TOKENS:
            raise ConfigError(
                f"a drift monitor needs a window of at least {MIN_TOKENS} tokens, got {window}"
            )
        self._quantiles_Q = _checked(quantiles)
        self._threshold = threshold
        self._promised = positive_rate
        self._interval = Interval(*positive_rate_interval)
        self._design_effect = design_effect
        self._edges_E = _edges(self._quantiles_Q)
        self._calibration_B = _calibration_shares(self._quantiles_Q, self._edges_E)
        self._scores = np.zeros(window)
        self._by_large = np.zeros(window, dtype=bool)
        self._tokens = 0

    @classmethod
    def from_card(cls, card: RouterCard) -> DriftMonitor | None:
        """Return the monitor of a router; None if its card has no scores to compare with.

        Raises:
            RouterError: the card's calibration is damaged.
        """
        calibration = card.calibration
        quantiles, point = calibration.get("score_quantiles"), calibration.get("point")
        interval = calibration.get("positive_rate")
        if not quantiles or not point or not interval:
            return None
        try:
            rate, low, high = (
                _share(value)
                for value in (point["positive_rate"], interval["low"], interval["high"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RouterError(
                f"the router's card has a calibration without a positive_rate and its interval "
                f"({error!r}); calibrate the router again"
            ) from error
        effect = _design_effect(point, rate, high - low)
        return cls(quantiles, card.threshold, rate, (low, high), design_effect=effect)

    def observe(self, score: float, to_large: bool) -> None:
        """Take in a token of a mixed generation; to_large: the large model wrote it."""
        place = self._tokens % len(self._scores)
        self._scores[place] = score
        self._by_large[place] = to_large
        self._tokens += 1

    def report(self) -> DriftReport:
        """Return how the last scores compare with the calibration's. Takes about a millisecond."""
        window = min(self._tokens, len(self._scores))
        live_N = np.sort(self._scores[:window])
        rate = psi = distance = None
        shares: list[float] | None = None
        if window:
            rate = float(sends_to_large(live_N, self._threshold).mean())
            below_E = np.searchsorted(live_N, self._edges_E, "right")
            counts_B = np.diff(below_E, prepend=0, append=window)
            shares = (counts_B / window).tolist()
            psi = population_stability_index(self._calibration_B, counts_B)
            distance = _distance(self._quantiles_Q, live_N)
        verdict = self._verdict(window, psi, rate)
        return DriftReport(
            tokens=self._tokens,
            window=window,
            threshold=self._threshold,
            promised_positive_rate=self._promised,
            promised_interval=self._interval,
            live_positive_rate=rate,
            live_large_fraction=float(self._by_large[:window].mean()) if window else None,
            psi=psi,
            ks_distance=distance,
            bins=self._bins(shares),
            verdict=verdict,
            sentence=self._sentence(verdict, window, psi, rate),
        )

    def _bins(self, shares: Sequence[float] | None) -> tuple[ScoreBin, ...]:
        ends = [0.0, *self._edges_E.tolist(), 1.0]
        calibration = self._calibration_B.tolist()
        live = [None] * len(calibration) if shares is None else shares
        return tuple(map(ScoreBin, ends[:-1], ends[1:], calibration, live))

    def _verdict(self, window: int, psi: float | None, rate: float | None) -> Verdict:
        if window < MIN_TOKENS or psi is None or rate is None:
            return Verdict.TOO_FEW
        drifted = psi > PSI_DRIFTED or abs(rate - self._promised) > self._slack(window)
        return Verdict.DRIFTED if drifted else Verdict.AS_CALIBRATED

    def _slack(self, window: int) -> float:
        """Return how far the live positive_rate of a window may be from the promised one."""
        variance = self._promised * (1 - self._promised) * self._design_effect / window
        width = self._interval.high - self._interval.low
        return 2 * width + _LEVEL_95 * math.sqrt(variance)

    def _sentence(
        self, verdict: Verdict, window: int, psi: float | None, rate: float | None
    ) -> str:
        if verdict is Verdict.TOO_FEW or psi is None or rate is None:
            return (
                f"Too few tokens: a verdict needs {MIN_TOKENS:,} scored tokens of mixed "
                f"generations, and {window:,} were seen."
            )
        low, high = 100 * self._interval.low, 100 * self._interval.high
        known = (
            f"at the router's own threshold {100 * rate:.1f} % of the last {window:,} tokens would "
            f"go to the large model, where its card promises {100 * self._promised:.1f} % "
            f"[{low:.1f}, {high:.1f}], and the scores' PSI is {psi:.2f} (limit {PSI_DRIFTED})"
        )
        if verdict is Verdict.AS_CALIBRATED:
            return (
                f"As calibrated: {known}; live text is partly the small model's, calibration's "
                "was the large model's alone, so they need not agree exactly."
            )
        return (
            f"Drifted: {known}; other prompts, or live text that is partly the small model's, can "
            "be why, and only labels of such prompts tell whether the router's recall still holds "
            "(`crossroads label`, then `crossroads calibrate`)."
        )


def population_stability_index(expected_B: _FLOATS, counts_B: NDArray[np.int64]) -> float:
    """Return PSI = sum over bins of (o - e) ln(o / e), for expected shares and live counts; >= 0.

    In use since Lewis, "An Introduction to Credit Scoring" (1994); it is Jeffreys' divergence of
    the binned distributions. Every bin is given half a token more than it has, so that an empty
    one does not make the sum infinite.
    """
    observed_B = (counts_B + 0.5) / (counts_B.sum() + 0.5 * len(counts_B))
    return float(np.sum((observed_B - expected_B) * np.log(observed_B / expected_B)))


def _edges(quantiles_Q: _FLOATS) -> _FLOATS:
    """Return the bins' inner edges [E]: the deciles, equal ones once, without the maximum."""
    places = np.arange(1, BINS) * (len(quantiles_Q) - 1) // BINS
    inner = quantiles_Q[places]
    edges_E: _FLOATS = np.unique(inner[inner < quantiles_Q[-1]])
    return edges_E


def _calibration_shares(quantiles_Q: _FLOATS, edges_E: _FLOATS) -> _FLOATS:
    """Return the calibration's share of each bin [B]: a tenth, more where scores are tied."""
    reached_E = np.searchsorted(quantiles_Q, edges_E, "right") - 1
    return np.diff(reached_E / (len(quantiles_Q) - 1), prepend=0.0, append=1.0)


def _distance(quantiles_Q: _FLOATS, live_N: _FLOATS) -> float:
    """Return the Kolmogorov-Smirnov distance of sorted scores to those with these quantiles.

    Between two quantiles the calibration's distribution function is taken as constant, so that the
    difference is largest at one of them, or just before it.
    """
    found = 0.0
    for side in ("left", "right"):
        live_Q = np.searchsorted(live_N, quantiles_Q, side) / len(live_N)
        own_Q = np.searchsorted(quantiles_Q, quantiles_Q, side) / len(quantiles_Q)
        found = max(found, float(np.abs(live_Q - own_Q).max()))
    return found


def _design_effect(point: Mapping[str, Any], rate: float, width: float) -> float:
    """Return the variance of a card's positive_rate over that of as many independent tokens."""
    tokens, independent = point.get("tokens"), rate * (1 - rate)
    if not tokens or independent == 0:
        return DESIGN_EFFECT
    return max(1.0, (width / 2 / _LEVEL_95) ** 2 * float(tokens) / independent)


def _share(value: Any) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not in [0, 1]")
    return share


def _checked(quantiles: Sequence[float]) -> _FLOATS:
    try:
        quantiles_Q = np.asarray(quantiles, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RouterError(
            f"score_quantiles must be numbers ({error}); calibrate the router again"
        ) from error
    in_range = quantiles_Q.ndim == 1 and bool(((quantiles_Q >= 0) & (quantiles_Q <= 1)).all())
    if not in_range or len(quantiles_Q) <= BINS or bool((np.diff(quantiles_Q) < 0).any()):
        raise RouterError(
            f"score_quantiles must be more than {BINS} ascending numbers in [0, 1], got "
            f"{quantiles_Q.size} of them or other ones; calibrate the router again"
        )
    return quantiles_Q
