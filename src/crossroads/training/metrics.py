"""What scores are worth: ranking, probabilities, and intervals that resample whole problems.

A ranking's numbers (positive_rate at a recall, AUROC, average precision) belong to an order of all
tokens, so a resample needs them anew. Tokens between two positives are interchangeable: a table of
such levels by problem, made once, turns every resample into a product and a running sum.

Shapes: N tokens, L levels, C problems, R resamples (r at a time), B bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossroads.errors import DataError
from crossroads.statistics import Interval, ratio_interval
from crossroads.training.ranking import interval_of
from crossroads.training.threshold import levels, operating_point, threshold_for_recall

RESAMPLES = 1000
BINS = 10
SMALLEST = 1e-7
"""Probabilities nearer to 0 or 1 count as this near: one certain mistake is no infinite loss."""
_HELD = 1 << 21  # numbers of a table of levels that are held at once
_ROUNDING = 1e-9  # as in threshold: 0.95 * 20 asks for 19


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval over problems."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Curve:
    """Recall against positive_rate at every threshold that makes a difference, descending."""

    threshold_L: np.ndarray
    recall_L: np.ndarray
    positive_rate_L: np.ndarray

    def thinned(self, most: int = 200) -> Curve:
        """Return at most `most` (>= 2) of its points, evenly along the curve, with both ends."""
        steps = np.abs(np.diff(self.recall_L)) + np.abs(np.diff(self.positive_rate_L))
        along_L = np.concatenate([[0.0], steps.cumsum()])
        wanted = np.linspace(0.0, along_L[-1], most)
        kept = np.unique(np.searchsorted(along_L, wanted).clip(max=len(along_L) - 1))
        kept[-1] = len(along_L) - 1
        return Curve(self.threshold_L[kept], self.recall_L[kept], self.positive_rate_L[kept])


def curve(scores: np.ndarray, positive: np.ndarray) -> Curve:
    """Return the exact curve, from nothing sent to everything sent.

    Raises:
        DataError: no token is positive.
    """
    if not positive.any():
        raise DataError("no token is positive, so there is no recall; label more problems")
    found = levels(scores, positive)
    return Curve(
        found.threshold_L, found.caught_L / found.caught_L[-1], found.sent_L / found.sent_L[-1]
    )


def positive_rate_at_recall(scores: np.ndarray, positive: np.ndarray, recall: float) -> float:
    """Return positive_rate at the highest threshold with that recall on the same tokens."""
    threshold = threshold_for_recall(scores, positive, recall)
    return operating_point(scores, positive, threshold).positive_rate


@dataclass(frozen=True, slots=True)
class Draws:
    """A number of all rows, and of each resample of their problems [R].

    The same seed draws the same problems for every router on the same rows: `compare` is paired.
    nan where a resample has one kind of tokens only; no resample at all of fewer than 2 problems.
    """

    value: float
    values_R: np.ndarray

    def estimate(self) -> Estimate:
        """Return the number, a share, with its interval."""
        return Estimate(self.value, interval_of(self.values_R))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking's numbers: positive_rate by recall, AUROC (a tie counts half), average precision.

    Average precision is the sum of precision over the steps of recall, without interpolation.
    """

    rate: Mapping[float, Draws]
    auroc: Draws
    average_precision: Draws


def rank(
    scores: np.ndarray,
    positive: np.ndarray,
    problem: np.ndarray,
    recalls: Sequence[float],
    seed: int,
    resamples: int = RESAMPLES,
) -> Ranked:
    """Return what a ranking is worth, with resamples of whole problems.

    Raises:
        DataError: the tokens are not of both kinds.
    """
    _check_kinds(positive)
    table = _Table(scores, positive, problem)
    own = table.numbers(np.ones((table.problems, 1)), recalls)
    many = resamples if table.problems > 1 else 0
    drawn = [own[:, :0]]
    for weights_Cr in draw_problems(table.problems, seed, many, _HELD // table.levels):
        drawn.append(table.numbers(weights_Cr, recalls))
    values = np.concatenate(drawn, axis=1)
    found = [Draws(float(own[i, 0]), values[i]) for i in range(len(own))]
    *rates, auroc, average = found
    return Ranked(dict(zip(recalls, rates, strict=True)), auroc, average)


def draw_problems(problems: int, seed: int, resamples: int, most: int) -> Iterator[np.ndarray]:
    """Yield how often each problem is drawn [C, r], at most `most` resamples at a time.

    The draws do not depend on `most`.
    """
    generator = np.random.default_rng(seed)
    size = max(1, min(most, _HELD // problems))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn_rC = generator.integers(problems, size=(count, problems))
        flat = (drawn_rC + problems * np.arange(count)[:, None]).ravel()
        counts_rC = np.bincount(flat, minlength=count * problems).reshape(count, problems)
        yield counts_rC.T.astype(np.float64)


class _Table:
    """Tokens and positives of each problem in each level, levels descending by score.

    A level is all tokens of one score that a positive has, or a run of negatives between such.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray, problem: np.ndarray) -> None:
        order = np.argsort(scores, kind="stable")[::-1]
        sorted_N, positive_N = scores[order], positive[order]
        names, problem_N = np.unique(problem[order], return_inverse=True)
        new_N = np.append(True, sorted_N[1:] != sorted_N[:-1])
        tie_N = new_N.cumsum() - 1
        caught_T = np.bincount(tie_N, weights=positive_N) > 0
        starts_T = caught_T | np.append(True, caught_T[:-1])
        level_N = (starts_T.cumsum() - 1)[tie_N]
        self.problems, self.levels = len(names), int(level_N[-1]) + 1
        self._sent_LC = self._counts(level_N, problem_N)
        self._caught_LC = self._counts(level_N[positive_N], problem_N[positive_N])

    def _counts(self, level_N: np.ndarray, problem_N: np.ndarray) -> Any:
        from scipy.sparse import csr_array  # noqa: PLC0415  keeps the command line's start light

        ones_N = np.ones(len(level_N))
        return csr_array((ones_N, (level_N, problem_N)), shape=(self.levels, self.problems))

    def numbers(self, weights_Cr: np.ndarray, recalls: Sequence[float]) -> np.ndarray:
        """Return [len(recalls) + 2, r]: positive_rate at each recall, AUROC, average precision."""
        new_Lr, hit_Lr = self._sent_LC @ weights_Cr, self._caught_LC @ weights_Cr
        sent_Lr, caught_Lr = new_Lr.cumsum(axis=0), hit_Lr.cumsum(axis=0)
        tokens_r, positives_r = sent_Lr[-1], caught_Lr[-1]
        negatives_r = tokens_r - positives_r
        numbers = [_sent_at(recall, sent_Lr, caught_Lr) / tokens_r for recall in recalls]
        # Of a level's negatives, half count as below its positives: the tie rule of AUROC.
        below_Lr = negatives_r - (sent_Lr - caught_Lr) + (new_Lr - hit_Lr) / 2
        precision_Lr = np.divide(caught_Lr, sent_Lr, out=np.zeros_like(sent_Lr), where=sent_Lr > 0)
        with np.errstate(invalid="ignore"):  # 0 / 0, replaced below
            numbers.append((hit_Lr * below_Lr).sum(axis=0) / (positives_r * negatives_r))
            numbers.append((hit_Lr * precision_Lr).sum(axis=0) / positives_r)
        known_r = (positives_r > 0) & (negatives_r > 0)
        found: np.ndarray = np.where(known_r, np.stack(numbers), np.nan)
        return found


def _sent_at(recall: float, sent_Lr: np.ndarray, caught_Lr: np.ndarray) -> np.ndarray:
    """Return the tokens sent [r] at the highest threshold with that recall."""
    needed_r = np.maximum(np.ceil(recall * caught_Lr[-1] - _ROUNDING), 1)
    first_r = (caught_Lr < needed_r).sum(axis=0).clip(max=len(sent_Lr) - 1)
    sent_r: np.ndarray = np.take_along_axis(sent_Lr, first_r[None], axis=0)[0]
    return sent_r


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two routers' positive_rate at one recall on the same rows; an interval without 1 (without 0
    for the difference) is a difference seen.
    """  # noqa: D205

    ratio: Estimate
    difference: Estimate


def compare(first: Draws, second: Draws) -> Comparison:
    """Return the paired ratio and difference of two numbers that one seed resampled.

    The problems are drawn for both at once, so that what is hard for both cancels.
    """
    if not len(first.values_R):
        return Comparison(
            Estimate(first.value / second.value, Interval(0.0, 1 / second.value)),
            Estimate(first.value - second.value, Interval(-1.0, 1.0)),
        )
    return Comparison(
        Draws(first.value / second.value, first.values_R / second.values_R).estimate(),
        Draws(first.value - second.value, first.values_R - second.values_R).estimate(),
    )


def compare_scores(
    first: np.ndarray,
    second: np.ndarray,
    positive: np.ndarray,
    problem: np.ndarray,
    recall: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Return `compare` of two routers' positive_rate at a recall, each at its own threshold."""
    one, other = (
        rank(scores, positive, problem, [recall], seed, resamples) for scores in (first, second)
    )
    return compare(one.rate[recall], other.rate[recall])


# Scores read as probabilities


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens of similar score: their mean score, and the share of positives among them."""

    score: float
    share: Estimate
    tokens: int


@dataclass(frozen=True, slots=True)
class Probabilities:
    """How far scores are probabilities; for a heuristic's scores the numbers mean little.

    brier: mean squared distance to 0 or 1 (Brier 1950). log_loss: mean, in nats.
    calibration_error: expected calibration error over equal-mass bins (Naeini et al. 2015); noise
    alone makes it positive, more so with fewer tokens.
    """

    brier: Estimate
    log_loss: Estimate
    calibration_error: Estimate
    bins: tuple[Bin, ...]


def probabilities(
    scores: np.ndarray, positive: np.ndarray, problem: np.ndarray, seed: int, bins: int = BINS
) -> Probabilities:
    """Return how far scores are probabilities, with intervals over problems."""
    scores = scores.astype(np.float64)
    near = np.clip(np.where(positive, scores, 1 - scores), SMALLEST, 1.0)
    return Probabilities(
        brier=_mean((scores - positive) ** 2, problem, seed, 1.0),
        log_loss=_mean(-np.log(near), problem, seed, -float(np.log(SMALLEST))),
        calibration_error=_calibration_error(scores, positive, problem, seed, bins),
        bins=reliability(scores, positive, problem, seed, bins),
    )


def reliability(
    scores: np.ndarray, positive: np.ndarray, problem: np.ndarray, seed: int, bins: int = BINS
) -> tuple[Bin, ...]:
    """Return at most `bins` bins of about equal mass, ascending; equal scores share a bin."""
    bin_N = _equal_mass(scores, bins)
    found = []
    for number in range(int(bin_N.max()) + 1):
        here = bin_N == number
        found.append(
            Bin(
                float(scores[here].mean(dtype=np.float64)),
                share_of(positive[here], problem[here], seed),
                int(here.sum()),
            )
        )
    return tuple(found)


def share_of(chosen: np.ndarray, problem: np.ndarray, seed: int) -> Estimate:
    """Return the share of tokens that are chosen, with its interval over problems."""
    return _mean(chosen.astype(np.float64), problem, seed, 1.0)


def clopper_pearson(caught: int, total: int, level: float = 0.95) -> Interval:
    """Return the exact interval of a share of independent tokens, to compare with.

    Clopper and Pearson, "The use of confidence or fiducial limits", 1934.
    """
    from scipy.stats import binomtest  # noqa: PLC0415  takes a second, and few need it

    found = binomtest(caught, total).proportion_ci(level, method="exact")
    return Interval(float(found.low), float(found.high))


def _mean(values: np.ndarray, problem: np.ndarray, seed: int, most: float) -> Estimate:
    """Return a mean with its interval; [0, most] where one problem says nothing of others."""
    _, problem = np.unique(problem, return_inverse=True)
    counts_C = np.bincount(problem)
    sums_C = np.bincount(problem, weights=values)
    value = float(sums_C.sum() / counts_C.sum())
    if len(counts_C) < 2:
        return Estimate(value, Interval(0.0, most))
    return Estimate(value, ratio_interval(sums_C, counts_C, seed))


def _calibration_error(
    scores: np.ndarray, positive: np.ndarray, problem: np.ndarray, seed: int, bins: int
) -> Estimate:
    """Return the mean over tokens of |share of positives - mean score| of the token's bin."""
    bin_N = _equal_mass(scores, bins)
    names, problem_N = np.unique(problem, return_inverse=True)
    count = len(names)
    gaps = np.bincount(bin_N * count + problem_N, positive - scores, (bin_N.max() + 1) * count)
    gap_BC, tokens_C = gaps.reshape(-1, count), np.bincount(problem_N)
    own = float(np.abs(gap_BC.sum(axis=1)).sum() / len(scores))
    drawn = [np.zeros(0)]
    for weights_Cr in draw_problems(count, seed, RESAMPLES if count > 1 else 0, RESAMPLES):
        drawn.append(np.abs(gap_BC @ weights_Cr).sum(axis=0) / (tokens_C @ weights_Cr))
    return Draws(own, np.concatenate(drawn)).estimate()


def _equal_mass(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return each token's bin [N]; bins hold equal numbers of tokens, up to ties."""
    inner = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    edges = np.unique(inner[inner < scores.max()])
    found: np.ndarray = np.searchsorted(edges, scores, side="left")
    return found


def _check_kinds(positive: np.ndarray) -> None:
    if not positive.any() or positive.all():
        raise DataError(
            f"{int(positive.sum())} of {len(positive)} tokens are positive; a ranking is measured "
            "on tokens of both kinds, so label more problems"
        )


# Scores of two sets of rows


def score_quantiles(scores: np.ndarray) -> list[float]:
    """Return 101 numbers: the scores at every percent, smallest and largest included."""
    found = np.quantile(scores, np.linspace(0, 1, 101), method="inverted_cdf")
    return [float(score) for score in found]


def distance(quantiles: Sequence[float], scores: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of scores to those of which quantiles are known.

    The largest difference of the two distribution functions, known to about 0.01.
    """
    from scipy.stats import ks_2samp  # noqa: PLC0415  takes a second, and few need it

    found = ks_2samp(np.asarray(quantiles), scores.astype(np.float64), method="asymp")
    return float(found.statistic)
