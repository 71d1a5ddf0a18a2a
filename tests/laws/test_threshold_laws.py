"""Law 6: the threshold meets its recall on calibration, and the next higher score does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError, DataError
from crossroads.training.threshold import (
    NEVER,
    operating_point,
    threshold_for_positive_rate,
    threshold_for_recall,
)

# Few distinct values, so that ties are common.
SCORES = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60)
RECALLS = st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([value / 12 for value, _ in rows], dtype=np.float32)
    return scores, np.array([positive for _, positive in rows])


@given(SCORES.filter(lambda rows: any(p for _, p in rows)), RECALLS)
def test_threshold_meets_recall_and_the_next_higher_score_does_not(
    rows: list[tuple[int, bool]], target: float
) -> None:
    scores, divergent = arrays(rows)
    threshold = threshold_for_recall(scores, divergent, target)
    assert operating_point(scores, divergent, threshold).recall >= target - 1e-9
    higher = [s for s in np.unique(scores) if s > threshold]
    for score in [*higher[:1], NEVER]:
        assert operating_point(scores, divergent, float(score)).recall < target - 1e-9


@given(SCORES, st.floats(0, 1))
def test_budget_is_kept_and_the_next_lower_score_breaks_it(
    rows: list[tuple[int, bool]], budget: float
) -> None:
    scores, divergent = arrays(rows)
    threshold = threshold_for_positive_rate(scores, budget)
    assert operating_point(scores, divergent, threshold).positive_rate <= budget + 1e-9
    lower = [s for s in np.unique(scores) if s < threshold]
    if lower:
        assert operating_point(scores, divergent, float(lower[-1])).positive_rate > budget


@given(SCORES.filter(lambda rows: any(p for _, p in rows)), st.integers(0, 1000))
def test_shuffling_tokens_changes_no_number(rows: list[tuple[int, bool]], seed: int) -> None:
    scores, divergent = arrays(rows)
    order = np.random.default_rng(seed).permutation(len(scores))
    threshold = threshold_for_recall(scores, divergent, 0.9)
    assert threshold_for_recall(scores[order], divergent[order], 0.9) == threshold
    assert operating_point(scores[order], divergent[order], threshold) == operating_point(
        scores, divergent, threshold
    )


def test_a_share_that_is_a_whole_number_of_tokens_asks_for_no_more() -> None:
    scores = np.linspace(0, 1, 20, dtype=np.float32)
    threshold = threshold_for_recall(scores, np.ones(20, bool), 0.95)
    assert operating_point(scores, np.ones(20, bool), threshold).recall == 0.95


def test_no_positive_token_is_refused() -> None:
    with pytest.raises(DataError, match="no token is divergent"):
        threshold_for_recall(np.array([0.5]), np.array([False]), 0.9)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="1 scores are not finite"):
        threshold_for_recall(np.array([0.5, np.nan]), np.array([True, True]), 0.9)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.01, float("nan")])
def test_recall_out_of_range_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="recall target"):
        threshold_for_recall(np.array([0.5]), np.array([True]), target)
