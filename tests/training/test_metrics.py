"""Metrics equal the libraries', their resamples equal doing it again on copied rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from crossroads.errors import DataError
from crossroads.training import metrics
from crossroads.training.metrics import (
    clopper_pearson,
    compare,
    compare_scores,
    curve,
    distance,
    draw_problems,
    positive_rate_at_recall,
    probabilities,
    rank,
    reliability,
    score_quantiles,
)
from crossroads.training.threshold import NEVER, operating_point

RECALLS = (0.5, 0.8, 0.95, 1.0)
ROWS = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 4)), min_size=2, max_size=50
).filter(lambda rows: len({p for _, p, _ in rows}) == 2)


def arrays(rows: list[tuple[int, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, positive, problem = zip(*rows, strict=True)
    return np.array(values, np.float32) / 8, np.array(positive), np.array(problem)


def made(
    seed: int, problems: int = 40, size: int = 25, strength: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    problem = np.repeat(np.arange(problems), size)
    positive = generator.random(problems * size) < 0.1
    logits = strength * positive + generator.normal(size=len(problem)) - 2
    logits += 0.5 * generator.normal(size=problems)[problem]
    return (1 / (1 + np.exp(-logits))).astype(np.float32), positive, problem


@given(ROWS)
def test_the_curve_is_every_threshold_and_nothing_else(rows) -> None:
    scores, positive, _ = arrays(rows)
    whole = curve(scores, positive)
    assert whole.threshold_L[0] == NEVER
    assert len(whole.threshold_L) == len(np.unique(scores)) + 1
    for threshold, recall, rate in zip(
        whole.threshold_L, whole.recall_L, whole.positive_rate_L, strict=True
    ):
        point = operating_point(scores, positive, float(threshold))
        assert (recall, rate) == pytest.approx((point.recall, point.positive_rate))


@given(ROWS, st.integers(2, 12))
def test_a_thinned_curve_keeps_the_ends_and_invents_nothing(rows, most: int) -> None:
    scores, positive, _ = arrays(rows)
    whole = curve(scores, positive)
    thin = whole.thinned(most)
    points = list(zip(whole.threshold_L, whole.recall_L, whole.positive_rate_L, strict=True))
    kept = list(zip(thin.threshold_L, thin.recall_L, thin.positive_rate_L, strict=True))
    assert 2 <= len(kept) <= most
    assert [kept[0], kept[-1]] == [points[0], points[-1]]
    assert [point for point in points if point in kept] == kept


def test_a_thinned_curve_stays_near_the_whole_one() -> None:
    scores, positive, _ = made(0, 100, 100)
    whole = curve(scores, positive)
    thin = whole.thinned(100)
    again = np.interp(whole.positive_rate_L, thin.positive_rate_L, thin.recall_L)
    assert np.abs(again - whole.recall_L).max() < 0.03


@given(ROWS)
@settings(deadline=None)
def test_a_ranking_of_all_rows_is_what_the_libraries_say(rows) -> None:
    scores, positive, problem = arrays(rows)
    found = rank(scores, positive, problem, RECALLS, seed=0, resamples=2)
    assert found.auroc.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.average_precision.value == pytest.approx(average_precision_score(positive, scores))
    for recall in RECALLS:
        expected = positive_rate_at_recall(scores, positive, recall)
        assert found.rate[recall].value == pytest.approx(expected)


@given(ROWS, st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_a_resample_is_the_rows_of_the_drawn_problems_copied(rows, seed: int) -> None:
    scores, positive, problem = arrays(rows)
    names, number = np.unique(problem, return_inverse=True)
    found = rank(scores, positive, problem, RECALLS, seed, resamples=5)
    draws = draw_problems(len(names), seed, 5 if len(names) > 1 else 0, 100)
    weights_CR = np.concatenate(list(draws), axis=1) if len(names) > 1 else np.zeros((1, 0))
    assert weights_CR.shape[1] == len(found.auroc.values_R)
    for at, weight_C in enumerate(weights_CR.T):
        copies = np.repeat(np.arange(len(scores)), weight_C[number].astype(int))
        some, kinds = scores[copies], positive[copies]
        if not kinds.any() or kinds.all():
            assert np.isnan(found.auroc.values_R[at])
            assert np.isnan(found.rate[0.8].values_R[at])
            continue
        assert found.auroc.values_R[at] == pytest.approx(roc_auc_score(kinds, some))
        assert found.average_precision.values_R[at] == pytest.approx(
            average_precision_score(kinds, some)
        )
        for recall in RECALLS:
            expected = positive_rate_at_recall(some, kinds, recall)
            assert found.rate[recall].values_R[at] == pytest.approx(expected)


def test_chunks_and_the_order_of_tokens_change_no_resample(monkeypatch) -> None:
    scores, positive, problem = made(1)
    whole = rank(scores, positive, problem, RECALLS, seed=3, resamples=101)
    monkeypatch.setattr(metrics, "_HELD", 1500)
    order = np.random.default_rng(0).permutation(len(scores))
    again = rank(scores[order], positive[order], problem[order], RECALLS, seed=3, resamples=101)
    assert np.array_equal(again.rate[0.8].values_R, whole.rate[0.8].values_R)
    assert again.auroc.values_R == pytest.approx(whole.auroc.values_R)


def test_every_problem_is_drawn_once_on_average() -> None:
    drawn_CR = np.concatenate(list(draw_problems(7, 0, 2000, 300)), axis=1)
    assert drawn_CR.shape == (7, 2000)
    assert (drawn_CR.sum(axis=0) == 7).all()
    assert drawn_CR.mean(axis=1) == pytest.approx(np.ones(7), abs=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = rank(*made(999, 4000), [0.8], seed=0, resamples=1).auroc.value
    covered = 0
    for seed in range(120):
        interval = rank(*made(seed), [0.8], seed, resamples=200).auroc.estimate().interval
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 120 <= 0.99


# Two routers


def test_a_router_sends_as_much_as_itself() -> None:
    scores, positive, problem = made(2)
    found = compare_scores(scores, scores, positive, problem, 0.9, seed=0, resamples=100)
    assert found.ratio.value == found.ratio.interval.low == found.ratio.interval.high == 1
    assert found.difference.interval.low == found.difference.interval.high == 0
    # Only the order counts.
    other = compare_scores(scores, scores**3, positive, problem, 0.9, seed=0, resamples=100)
    assert other.ratio == found.ratio


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    scores, positive, problem = made(3, 60, 30)
    generator = np.random.default_rng(0)
    worse = np.where(generator.random(len(scores)) < 0.08, generator.random(len(scores)), scores)
    a, b = (rank(s, positive, problem, [0.8], seed=1) for s in (scores, worse))
    first, second = a.rate[0.8].estimate(), b.rate[0.8].estimate()
    found = compare(a.rate[0.8], b.rate[0.8])
    assert found.ratio.value == first.value / second.value
    assert found.difference.value == pytest.approx(first.value - second.value)
    assert found.ratio.interval.high < 1
    assert found.difference.interval.high < 0
    assert first.interval.high > second.interval.low  # the two intervals overlap
    turned = compare(b.rate[0.8], a.rate[0.8])
    assert turned.difference.interval.low == pytest.approx(-found.difference.interval.high)


def test_one_problem_leaves_everything_open() -> None:
    scores, positive, problem = made(4, 1, 200)
    found = compare_scores(scores, scores**2, positive, problem, 0.9, seed=0)
    assert found.ratio.interval.low == 0 < 1 < found.ratio.interval.high
    assert (found.difference.interval.low, found.difference.interval.high) == (-1, 1)
    interval = rank(scores, positive, problem, [0.9], seed=0).auroc.estimate().interval
    assert (interval.low, interval.high) == (0, 1)


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_tokens_cannot_be_ranked(kind: bool) -> None:
    with pytest.raises(DataError, match="both kinds"):
        rank(np.array([0.1, 0.2]), np.full(2, kind), np.arange(2), [0.9], seed=0)


# Probabilities


@given(ROWS)
@settings(deadline=None, max_examples=25)
def test_proper_scores_are_what_the_libraries_say(rows) -> None:
    scores, positive, problem = arrays(rows)
    scores = scores.astype(np.float64).clip(0.01, 0.99)
    found = probabilities(scores, positive, problem, seed=0)
    assert found.brier.value == pytest.approx(brier_score_loss(positive, scores))
    assert found.log_loss.value == pytest.approx(log_loss(positive, scores))


@given(ROWS, st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_bins_hold_every_token_once_in_the_order_of_scores(rows, count: int) -> None:
    scores, positive, problem = arrays(rows)
    found = reliability(scores, positive, problem, seed=0, bins=count)
    assert 1 <= len(found) <= count
    assert sum(b.tokens for b in found) == len(scores)
    means = [b.score for b in found]
    assert means == sorted(means)
    total = sum(b.tokens * b.share.value for b in found)
    assert total == pytest.approx(positive.sum())
    # Equal scores share a bin: there are no more bins than scores.
    assert len(found) <= len(np.unique(scores))


def test_distinct_scores_fill_bins_evenly() -> None:
    scores = np.random.default_rng(0).permutation(1000) / 1000
    found = reliability(scores, scores > 0.5, np.arange(1000), seed=0)
    assert [b.tokens for b in found] == [100] * 10


def test_probabilities_that_are_true_have_little_error_and_wrong_ones_theirs() -> None:
    generator = np.random.default_rng(0)
    truth = generator.beta(1, 8, 40_000)
    positive, problem = generator.random(40_000) < truth, np.arange(40_000) % 200
    honest = probabilities(truth, positive, problem, seed=0)
    shifted = probabilities(truth + 0.2 * (1 - truth), positive, problem, seed=0)
    assert honest.calibration_error.value < 0.01
    expected = float((0.2 * (1 - truth)).mean())
    assert shifted.calibration_error.value == pytest.approx(expected, abs=0.01)
    interval = shifted.calibration_error.interval
    assert interval.low < expected < interval.high
    assert honest.brier.value < shifted.brier.value
    assert honest.log_loss.value < shifted.log_loss.value


def test_certain_mistakes_cost_much_and_not_everything() -> None:
    found = probabilities(np.array([0.0, 1.0]), np.array([True, False]), np.arange(2), seed=0)
    assert found.log_loss.value == pytest.approx(-np.log(metrics.SMALLEST))
    assert found.brier.value == 1


def test_clopper_pearson_of_published_counts() -> None:
    # Newcombe (1998), table I, method 5: 81/263, 15/148, 0/20, 1/29.
    for caught, total, low, high in [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ]:
        found = clopper_pearson(caught, total)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


# Two sets of scores


def test_distances_of_the_same_of_shifted_and_of_disjoint_scores() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(5000).astype(np.float32)
    quantiles = score_quantiles(scores)
    assert len(quantiles) == 101
    assert (quantiles[0], quantiles[-1]) == (scores.min(), scores.max())
    assert distance(quantiles, scores) <= 0.011
    assert distance(quantiles, generator.random(5000)) < 0.04
    assert distance(quantiles, scores * 0.8) == pytest.approx(0.2, abs=0.02)
    assert distance(quantiles, scores + 2) == 1.0
    tied = np.where(scores < 0.5, 0.0, scores)
    assert distance(score_quantiles(tied), tied) <= 0.011
