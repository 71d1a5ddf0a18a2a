"""Thresholds for every target: exact against brute force, and guarantees that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import DataError
from crossroads.training.ranking import Ranking
from crossroads.training.target import Target, choose_threshold
from crossroads.training.threshold import (
    METHODS,
    NEVER,
    guaranteed_threshold,
    operating_point,
    threshold_for_cost,
    threshold_for_f1,
    threshold_for_positive_rate,
    threshold_for_recall,
)

# Few distinct values, so that ties are common.
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 4)), min_size=1, max_size=60
)
WITH_POSITIVE = ROWS.filter(lambda rows: any(positive for _, positive, _ in rows))


def arrays(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.array([value / 12 for value, _, _ in rows], dtype=np.float32)
    return scores, np.array([p for _, p, _ in rows]), np.array([c for _, _, c in rows])


def f1(scores: np.ndarray, positive: np.ndarray, threshold: float) -> float:
    sent = scores >= threshold
    return 2 * (sent & positive).sum() / (sent.sum() + positive.sum())


@given(WITH_POSITIVE)
def test_f1_is_the_best_there_is(rows) -> None:
    scores, positive, _ = arrays(rows)
    found = threshold_for_f1(scores, positive)
    values = {float(s): f1(scores, positive, s) for s in np.unique(scores)}
    assert values[found] == pytest.approx(max(values.values()))
    assert all(value < values[found] - 1e-12 for s, value in values.items() if s > found)


@given(WITH_POSITIVE, st.integers(1, 20), st.integers(1, 5))
def test_cost_is_the_least_there_is(rows, miss: int, call: int) -> None:
    scores, positive, _ = arrays(rows)

    def cost(threshold: float) -> float:
        sent = scores >= threshold
        return float(miss * (positive & ~sent).sum() + call * sent.sum())

    found = threshold_for_cost(scores, positive, miss, call)
    every = [NEVER, *map(float, np.unique(scores))]
    assert cost(found) == min(map(cost, every))
    assert all(cost(s) > cost(found) for s in every if s > found)


@given(WITH_POSITIVE, st.sampled_from([0.5, 0.8, 0.9]), st.sampled_from(METHODS))
def test_a_guarantee_never_asks_for_fewer_tokens_than_the_plain_recall(
    rows, recall: float, method: str
) -> None:
    scores, positive, problem = arrays(rows)
    try:
        found = guaranteed_threshold(scores, positive, problem, recall, 0.9, method)
    except DataError:
        return  # too few; another test reads the sentence
    assert found <= threshold_for_recall(scores, positive, recall)


@given(WITH_POSITIVE, st.randoms(use_true_random=False))
def test_the_order_of_tokens_means_nothing(rows, random) -> None:
    scores, positive, problem = arrays(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    for text in ("recall=0.9", "f1", "cost=miss:5,call:1"):
        target = Target.parse(text)
        assert choose_threshold(target, scores, positive, problem, 0) == choose_threshold(
            target, scores[order], positive[order], problem[order], 0
        )


@pytest.mark.parametrize("method", METHODS)
def test_guarantees_hold_on_other_problems(method: str) -> None:
    """Draw calibration sets of clustered positives; the recall elsewhere is known exactly."""
    generator = np.random.default_rng(0)
    kept = []
    for _ in range(150):
        # A problem's positives share a level: score ~ level + noise, so tokens are no trials.
        problem = np.repeat(np.arange(60), 6)
        level = np.repeat(generator.normal(0, 0.5, 60), 6)
        scores = level + generator.normal(0, 0.87, len(problem))
        positive = np.ones(len(scores), bool)
        threshold = guaranteed_threshold(scores, positive, problem, 0.8, 0.9, method)
        # Marginally a score is normal with variance 0.5^2 + 0.87^2.
        spread = np.hypot(0.5, 0.87)
        kept.append(0.5 * (1 - _erf(threshold / spread / np.sqrt(2))) >= 0.8)
    share = float(np.mean(kept))
    # 0.9 is promised; with 150 draws the share is good to 0.05. Independence is false here, so
    # Clopper-Pearson on tokens may fall short, and only it.
    assert share >= (0.75 if method == "clopper-pearson" else 0.83)


def _erf(value: float) -> float:
    import math

    return math.erf(value)


@given(WITH_POSITIVE, st.sampled_from([0.3, 0.8, 0.95, 1.0]))
def test_the_ranking_is_what_thresholds_do(rows, recall: float) -> None:
    scores, positive, problem = arrays(rows)
    ranking = Ranking.of(scores, positive, problem)
    threshold = threshold_for_recall(scores, positive, recall)
    expected = operating_point(scores, positive, threshold).positive_rate
    assert ranking.rate_at_recall(recall)[0] == pytest.approx(expected)


@given(WITH_POSITIVE, st.integers(0, 5))
def test_a_resample_is_a_dataset_with_repeated_problems(rows, seed: int) -> None:
    scores, positive, problem = arrays(rows)
    ranking = Ranking.of(scores, positive, problem)
    weights_CR = ranking.weights(seed, 8)
    names = np.unique(problem)
    rates = ranking.rate_at_recall(0.8, weights_CR)
    for column, rate in zip(weights_CR.T, rates, strict=True):
        times = {name: int(weight) for name, weight in zip(names, column, strict=True)}
        rows_n = np.concatenate(
            [np.repeat(np.flatnonzero(problem == name), times[name]) for name in names]
        )
        if not positive[rows_n].any():
            assert np.isnan(rate)
            continue
        # Only thresholds at scores of the full set's positives are candidates in both.
        threshold = threshold_for_recall(scores[rows_n], positive[rows_n], 0.8)
        point = operating_point(scores[rows_n], positive[rows_n], threshold)
        assert rate == pytest.approx(point.positive_rate)


@given(WITH_POSITIVE, st.floats(0, 1))
def test_recall_at_a_rate_is_the_budgets(rows, rate: float) -> None:
    scores, positive, problem = arrays(rows)
    threshold = threshold_for_positive_rate(scores, rate)
    expected = operating_point(scores, positive, threshold).recall
    assert Ranking.of(scores, positive, problem).recall_at_rate(rate)[0] == pytest.approx(expected)
