"""The ranking in which a cause's points are measured: one set of scores over some rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossroads.diagnosis.resampling import Clusters, WeightedRanking
from crossroads.diagnosis.verdict import Estimate

_SEED = 0  # of every bootstrap here; fixed, so that the same evidence gives the same page


@dataclass(frozen=True)
class Gauge:
    """Scores, labels and problems of the rows that count, n of the data's N positions.

    name: what ranks, for running text. rows_N: which positions these are. trained: whether the
    scores come from a network rather than from a rule. recall: at which the rate is read.
    """

    name: str
    rows_N: np.ndarray
    score_n: np.ndarray
    positive_n: np.ndarray
    problem_n: np.ndarray
    recall: float
    trained: bool

    @cached_property
    def ranking(self) -> WeightedRanking:
        """The scores, ranked."""
        return WeightedRanking(self.score_n, self.positive_n)

    @cached_property
    def clusters(self) -> Clusters:
        """Resamples of the rows' problems."""
        return Clusters(self.problem_n, _SEED)

    @property
    def positives(self) -> int:
        """Positive rows."""
        return int(self.positive_n.sum())

    @cached_property
    def rate(self) -> Estimate:
        """positive_rate at the recall."""
        return self.clusters.estimate(lambda w: self.ranking.rate_at_recall(self.recall, w))

    def rate_without(self, weight_N: np.ndarray) -> tuple[float, Estimate]:
        """Return positive_rate under weights of all positions, and by how much it is lower so."""
        weight_n = weight_N[self.rows_N].astype(np.float64)
        return (
            self.ranking.rate_at_recall(self.recall, weight_n),
            self.clusters.estimate(
                lambda w: (
                    self.ranking.rate_at_recall(self.recall, w)
                    - self.ranking.rate_at_recall(
                        self.recall, weight_n if w is None else w * weight_n
                    )
                )
            ),
        )

    def less(self, other_n: np.ndarray) -> Estimate:
        """Return this ranking's rate less that of other scores of the same rows, paired."""
        other = WeightedRanking(other_n, self.positive_n)
        return self.clusters.estimate(
            lambda w: (
                self.ranking.rate_at_recall(self.recall, w) - other.rate_at_recall(self.recall, w)
            )
        )

    def recall_at(self, rate: float) -> Estimate:
        """Return what recall a positive_rate buys."""
        return self.clusters.estimate(lambda w: self.ranking.recall_at_rate(rate, w))

    def with_scores(self, name: str, score_N: np.ndarray, *, trained: bool) -> Gauge:
        """Return other scores of all positions as a gauge over the same rows."""
        return Gauge(
            name,
            self.rows_N,
            score_N[self.rows_N],
            self.positive_n,
            self.problem_n,
            self.recall,
            trained,
        )
