"""Ranked scores that can be weighted, and their bootstrap over problems.

Weights serve two ends: a resample of problems is a weight per position, and so is the removal or
the reweighting of rows. Shapes: N positions, C problems, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crossroads.diagnosis.verdict import Estimate

RESAMPLES = 200
_SLACK = 1e-9  # forgives the rounding of e.g. 0.95 * 20, as training.threshold does
_MOST_WORK = 1e8  # positions times resamples; beyond it there are fewer resamples


class WeightedRanking:
    """Scores in descending order. Ties are sent together or not at all.

    Takes a weight per position where training.ranking takes one per problem: to remove or reweigh
    rows is the question here.
    """

    def __init__(self, scores_N: np.ndarray, positive_N: np.ndarray) -> None:
        """Take scores (higher is sent first) and the positive class, bool."""
        self.order_N = np.argsort(-scores_N, kind="stable")
        sorted_N = scores_N[self.order_N]
        self.positive_N = positive_N[self.order_N].astype(np.float64)
        changes_N = np.ones(len(sorted_N), bool)
        changes_N[:-1] = sorted_N[1:] != sorted_N[:-1]
        # Where each tie ends, and where that of each position does.
        self.ends_M = np.flatnonzero(changes_N)
        self.tie_end_N = self.ends_M[np.searchsorted(self.ends_M, np.arange(len(sorted_N)))]
        self.scores_N = sorted_N

    def _sums(self, weight_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if weight_N is None:
            return np.arange(1, len(self.order_N) + 1, dtype=np.float64), self.positive_N.cumsum()
        sorted_N = weight_N[self.order_N]
        return sorted_N.cumsum(), (sorted_N * self.positive_N).cumsum()

    def rate_at_recall(self, recall: float, weight_N: np.ndarray | None = None) -> float:
        """Return positive_rate at the highest threshold with that recall; nan without positives."""
        sent_N, caught_N = self._sums(weight_N)
        if not len(sent_N) or caught_N[-1] <= 0:
            return float("nan")
        at = self._at_recall(recall, caught_N)
        return float(sent_N[at] / sent_N[-1])

    def _at_recall(self, recall: float, caught_N: np.ndarray) -> int:
        needed = recall * caught_N[-1] * (1 - _SLACK)
        first = int(np.searchsorted(caught_N, needed))
        return int(self.tie_end_N[min(first, len(caught_N) - 1)])

    def sent_by_group(
        self, recall: float, group_N: np.ndarray, count: int, weight_N: np.ndarray | None = None
    ) -> np.ndarray:
        """Return which share of each group [count] that threshold sends; nan for empty groups."""
        _, caught_N = self._sums(weight_N)
        at = self._at_recall(recall, caught_N)
        group_sorted_N = group_N[self.order_N]
        weight = np.ones(len(group_N)) if weight_N is None else weight_N[self.order_N]
        sent = np.bincount(group_sorted_N[: at + 1], weight[: at + 1], count)
        there = np.bincount(group_sorted_N, weight, count)
        shares: np.ndarray = np.divide(sent, there, out=np.full(count, np.nan), where=there > 0)
        return shares

    def sent_at_recall(self, recall: float, weight_N: np.ndarray | None = None) -> np.ndarray:
        """Return which positions [N] that threshold sends, bool, in the order of the input."""
        _, caught_N = self._sums(weight_N)
        sent_N = np.zeros(len(caught_N), bool)
        sent_N[self.order_N[: self._at_recall(recall, caught_N) + 1]] = True
        return sent_N

    def recall_at_rate(self, rate: float, weight_N: np.ndarray | None = None) -> float:
        """Return the highest recall whose positive_rate is at most `rate`."""
        sent_N, caught_N = self._sums(weight_N)
        if not len(sent_N) or caught_N[-1] <= 0:
            return float("nan")
        within_N = sent_N[self.tie_end_N] <= rate * sent_N[-1] * (1 + _SLACK)
        count = int(within_N.sum())  # a prefix: sums do not fall
        return float(caught_N[self.tie_end_N[count - 1]] / caught_N[-1]) if count else 0.0

    def curve(self, recalls: np.ndarray) -> np.ndarray:
        """Return positive_rate at each recall."""
        return np.array([self.rate_at_recall(float(recall)) for recall in recalls])

    def auroc(self, weight_N: np.ndarray | None = None) -> float:
        """Return the chance that a positive scores above a negative, ties half; nan without both.

        The area under the ROC curve by trapezoids, which counts a tie as half.
        """
        sent_N, caught_N = self._sums(weight_N)
        hit = np.concatenate([[0.0], caught_N[self.ends_M]])
        false = np.concatenate([[0.0], (sent_N - caught_N)[self.ends_M]])
        if hit[-1] <= 0 or false[-1] <= 0:
            return float("nan")
        area = ((false[1:] - false[:-1]) * (hit[1:] + hit[:-1]) / 2).sum()
        return float(area / (hit[-1] * false[-1]))


class Clusters:
    """Resamples of whole problems, as weights per position; the same for every statistic."""

    def __init__(self, problem_N: np.ndarray, seed: int, resamples: int = RESAMPLES) -> None:
        """Take each position's problem, any integers."""
        known, self.problem_N = np.unique(problem_N, return_inverse=True)
        self.count = len(known)
        most = max(50, int(_MOST_WORK / max(len(problem_N), 1)))
        self.resamples = min(resamples, most)
        self._generator_seed = seed

    def draws(self) -> np.ndarray:
        """Return how often each resample drew each problem [R, C]."""
        generator = np.random.default_rng(self._generator_seed)
        even = np.full(self.count, 1 / max(self.count, 1))
        return generator.multinomial(self.count, even, size=self.resamples)

    def estimate(self, statistic: Callable[[np.ndarray | None], float]) -> Estimate:
        """Return the statistic of all positions, with its interval over problems.

        `statistic` takes a weight per position, or None for all ones.
        """
        value = statistic(None)
        if self.count < 2:
            return Estimate(value)
        draws_R = [
            statistic(drawn_C[self.problem_N].astype(np.float64)) for drawn_C in self.draws()
        ]
        return Estimate.of(value, np.array(draws_R))

    def sums(self, values_N: np.ndarray) -> np.ndarray:
        """Return the sum of some values over each problem [C]."""
        sums_C: np.ndarray = np.bincount(self.problem_N, values_N, minlength=self.count)
        return sums_C

    def estimate_of_sums(
        self, parts: np.ndarray, statistic: Callable[[np.ndarray], float]
    ) -> Estimate:
        """Return a statistic of totals with its interval; parts [P, N] are summed over positions.

        For statistics of counts, which need no ranking anew: `statistic` takes the P totals.
        """
        sums_PC = np.stack([self.sums(part_N.astype(np.float64)) for part_N in parts])
        value = statistic(sums_PC.sum(axis=1))
        if self.count < 2:
            return Estimate(value)
        draws_R = [statistic(sums_PC @ drawn_C) for drawn_C in self.draws()]
        return Estimate.of(value, np.array(draws_R))
