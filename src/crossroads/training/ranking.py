"""What every threshold does, by problem: the table from which rates and their intervals come.

Whole problems are resampled (or reweighted), so a resample is a weight per problem, and recall and
positive_rate under it are two matrix products. Shapes: N positions, C problems, T thresholds
(descending), R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.errors import DataError
from crossroads.statistics import Interval

MAX_THRESHOLDS = 4096
"""Above this number of positives, evenly spread ones stand for all of them."""
_ROUNDING = 1e-9  # forgives the rounding of e.g. 0.95 * 20, which asks for 19 tokens and not 20


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows and positives of each problem at or above each threshold.

    thresholds_T: distinct scores of positives, descending: recall changes nowhere else.
    sent_TC, caught_TC: rows, and positives, with score >= threshold. rows_C, positives_C: of each
    problem in all.
    """

    thresholds_T: np.ndarray
    sent_TC: np.ndarray
    caught_TC: np.ndarray
    rows_C: np.ndarray
    positives_C: np.ndarray

    @classmethod
    def of(cls, scores_N: np.ndarray, positive_N: np.ndarray, problem_N: np.ndarray) -> Ranking:
        """Return the table of some scored rows.

        Raises:
            DataError: no row, no positive, or a score that is not finite.
        """
        if not len(scores_N):
            raise DataError("there are no scores to rank")
        if not np.isfinite(scores_N).all():
            raise DataError(f"{int((~np.isfinite(scores_N)).sum())} scores are not finite numbers")
        if not positive_N.any():
            raise DataError("no token is positive, so there is no recall; label more problems")
        thresholds_T = np.unique(scores_N[positive_N])[::-1]
        if len(thresholds_T) > MAX_THRESHOLDS:
            at = np.linspace(0, len(thresholds_T) - 1, MAX_THRESHOLDS).round().astype(int)
            thresholds_T = thresholds_T[at]
        names, problem_N = np.unique(problem_N, return_inverse=True)
        sent_TC = _at_least(scores_N, problem_N, thresholds_T, len(names))
        caught_TC = _at_least(scores_N[positive_N], problem_N[positive_N], thresholds_T, len(names))
        return cls(
            thresholds_T,
            sent_TC,
            caught_TC,
            np.bincount(problem_N, minlength=len(names)).astype(float),
            np.bincount(problem_N[positive_N], minlength=len(names)).astype(float),
        )

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(self.rows_C)

    def weights(self, seed: int, resamples: int = 1000) -> np.ndarray:
        """Return how often each problem is drawn [C, R], in resamples of whole problems.

        The same seed gives the same draws to every router on the same rows: comparisons are
        paired.
        """
        generator = np.random.default_rng(seed)
        shares_C = np.full(self.problems, 1 / self.problems)
        drawn_RC = generator.multinomial(self.problems, shares_C, size=resamples)
        return drawn_RC.T.astype(float)

    def rate_at_recall(self, recall: float, weights_CR: np.ndarray | None = None) -> np.ndarray:
        """Return positive_rate at the highest threshold with that recall [R].

        nan where no positive is drawn. Without weights: one number, of the rows as they are.
        """
        weights_CR = np.ones((self.problems, 1)) if weights_CR is None else weights_CR
        caught_TR = self.caught_TC @ weights_CR
        total_R = self.positives_C @ weights_CR
        enough_TR = caught_TR >= recall * total_R - _ROUNDING
        first_R = enough_TR.argmax(axis=0)
        sent_TR = self.sent_TC @ weights_CR
        rate_R = sent_TR[first_R, np.arange(weights_CR.shape[1])] / (self.rows_C @ weights_CR)
        result: np.ndarray = np.where(total_R > 0, rate_R, np.nan)
        return result

    def recall_at_rate(self, rate: float, weights_CR: np.ndarray | None = None) -> np.ndarray:
        """Return recall at the lowest threshold that sends at most `rate` of the rows [R]."""
        weights_CR = np.ones((self.problems, 1)) if weights_CR is None else weights_CR
        sent_TR = (self.sent_TC @ weights_CR) / (self.rows_C @ weights_CR)
        allowed_TR = sent_TR <= rate + _ROUNDING
        last_R = np.where(allowed_TR.any(axis=0), allowed_TR.sum(axis=0) - 1, -1)
        caught_TR = self.caught_TC @ weights_CR
        with np.errstate(invalid="ignore", divide="ignore"):
            share_TR = caught_TR / (self.positives_C @ weights_CR)
        found_R = share_TR[last_R.clip(0), np.arange(weights_CR.shape[1])]
        result: np.ndarray = np.where(last_R >= 0, found_R, 0.0)
        return result

    def recalls(self, weights_CR: np.ndarray) -> np.ndarray:
        """Return the recall of every threshold [T, R]."""
        with np.errstate(invalid="ignore"):
            share_TR: np.ndarray = (self.caught_TC @ weights_CR) / (self.positives_C @ weights_CR)
        return share_TR


def _at_least(
    scores_N: np.ndarray, problem_N: np.ndarray, thresholds_T: np.ndarray, problems: int
) -> np.ndarray:
    """Return how many rows of each problem reach each threshold [T, C], float64."""
    # A row counts from the first (highest) threshold that its score reaches.
    first_N = np.searchsorted(-thresholds_T, -scores_N, side="left")
    counts_TC = np.zeros((len(thresholds_T) + 1, problems))
    np.add.at(counts_TC, (first_N, problem_N), 1.0)
    result: np.ndarray = counts_TC[:-1].cumsum(axis=0)
    return result


def interval_of(draws_R: np.ndarray, level: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap draws; draws without a value do not count."""
    known_R = draws_R[np.isfinite(draws_R)]
    if not len(known_R):
        return Interval(0.0, 1.0)
    tail = (1 - level) / 2
    low, high = np.quantile(known_R, [tail, 1 - tail])
    return Interval(float(low), float(high))
