"""Law 6: the threshold meets its recall on calibration, and the next higher score does not.

And its like for the other targets: each threshold is the best of all, ties and all.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError, DataError
from crossroads.training.target import Target, choose_threshold
from crossroads.training.threshold import (
    METHODS,
    NEVER,
    clopper_pearson_lower,
    guaranteed_threshold,
    levels,
    operating_point,
    threshold_for_cost,
    threshold_for_f1,
    threshold_for_positive_rate,
    threshold_for_recall,
)

# Few distinct values, so that ties are common.
SCORES = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60)
WITH_POSITIVES = SCORES.filter(lambda rows: any(p for _, p in rows))
RECALLS = st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
COSTS = st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(any)


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([value / 12 for value, _ in rows], dtype=np.float32)
    return scores, np.array([positive for _, positive in rows])


def candidates(scores: np.ndarray) -> list[float]:
    """Return every threshold that differs in what it sends, descending."""
    return [NEVER, *(float(s) for s in np.unique(scores)[::-1])]


def clustered(
    seed: int, problems: int = 60, size: int = 5, alike: float = 0.6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, positives (all) and problems; tokens of one problem resemble one another.

    A score is sigmoid(z), z standard normal over all problems, so recalls are known.
    """
    generator = np.random.default_rng(seed)
    problem = np.repeat(np.arange(problems), 1 + generator.poisson(size - 1, problems))
    own = generator.normal(size=len(problem)) * np.sqrt(1 - alike**2)
    z = own + alike * generator.normal(size=problems)[problem]
    return 1 / (1 + np.exp(-z)), np.ones(len(z), bool), problem


def true_recall(threshold: float) -> float:
    """Return the share of all positives whose score is at least the threshold."""
    from scipy.stats import norm

    return float(norm.sf(np.log(threshold / (1 - threshold))))


@given(WITH_POSITIVES, RECALLS)
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


@given(SCORES)
def test_levels_are_what_every_threshold_does(rows: list[tuple[int, bool]]) -> None:
    scores, positive = arrays(rows)
    found = levels(scores, positive)
    assert found.threshold_L.tolist() == candidates(scores)
    for threshold, sent, caught in zip(
        found.threshold_L, found.sent_L, found.caught_L, strict=True
    ):
        chosen = scores >= np.float32(threshold)
        assert (sent, caught) == (chosen.sum(), (chosen & positive).sum())


@given(WITH_POSITIVES)
def test_f1_is_the_best_of_all_thresholds_and_the_highest_of_equals(
    rows: list[tuple[int, bool]],
) -> None:
    scores, positive = arrays(rows)

    def f1(threshold: float) -> float:
        sent = scores >= np.float32(threshold)
        return 2 * (sent & positive).sum() / (sent.sum() + positive.sum())

    best = max(candidates(scores), key=f1)  # max keeps the first, which is the highest
    assert threshold_for_f1(scores, positive) == best


@given(WITH_POSITIVES, COSTS)
def test_cost_is_the_least_of_all_thresholds_and_the_highest_of_equals(
    rows: list[tuple[int, bool]], costs: tuple[int, int]
) -> None:
    scores, positive = arrays(rows)
    miss, call = costs

    def cost(threshold: float) -> int:
        sent = scores >= np.float32(threshold)
        return int(miss * (~sent & positive).sum() + call * sent.sum())

    best = min(candidates(scores), key=cost)
    assert threshold_for_cost(scores, positive, miss, call) == best
    # Costs are a ratio: scaling both, also by what floats cannot hold exactly, changes nothing.
    assert threshold_for_cost(scores, positive, miss * 0.1, call * 0.1) == best


def test_what_is_worth_nothing_is_never_sent() -> None:
    scores, positive = np.array([0.1, 0.9]), np.array([True, True])
    assert threshold_for_cost(scores, positive, miss_cost=1, call_cost=2) == NEVER
    assert threshold_for_cost(scores, positive, miss_cost=1, call_cost=0) == 0.1


TARGETS = st.sampled_from(
    [
        Target("recall", 0.9),
        Target("positive_rate", 1.0),
        Target("f1"),
        Target("cost", miss_cost=3, call_cost=1),
    ]
)


@given(WITH_POSITIVES, TARGETS, st.integers(0, 1000))
def test_shuffling_tokens_changes_no_number(
    rows: list[tuple[int, bool]], target: Target, seed: int
) -> None:
    scores, divergent = arrays(rows)
    problem = np.arange(len(scores)) % 3
    order = np.random.default_rng(seed).permutation(len(scores))
    threshold = choose_threshold(target, scores, divergent, problem, 0)
    assert choose_threshold(target, scores[order], divergent[order], problem[order], 0) == threshold
    assert operating_point(scores[order], divergent[order], threshold) == operating_point(
        scores, divergent, threshold
    )


def test_a_share_that_is_a_whole_number_of_tokens_asks_for_no_more() -> None:
    scores = np.linspace(0, 1, 20, dtype=np.float32)
    threshold = threshold_for_recall(scores, np.ones(20, bool), 0.95)
    assert operating_point(scores, np.ones(20, bool), threshold).recall == 0.95


# The guarantee


@pytest.mark.parametrize("method", METHODS)
def test_a_guarantee_costs_calls_and_more_confidence_costs_more(method: str) -> None:
    scores, positive, problem = clustered(0, problems=80)
    plain = threshold_for_recall(scores, positive, 0.9)
    found = [
        guaranteed_threshold(scores, positive, problem, 0.9, confidence, method)
        for confidence in (0.6, 0.9, 0.95)
    ]
    assert plain >= found[0] >= found[1] >= found[2] > 0
    assert found[2] < plain


@pytest.mark.parametrize("method", METHODS)
def test_a_guarantee_does_not_depend_on_the_order_of_tokens_or_problems(method: str) -> None:
    scores, positive, problem = clustered(1)
    positive &= scores > 0.2
    order = np.random.default_rng(0).permutation(len(scores))
    renamed = np.random.default_rng(1).permutation(60)[problem]
    first = guaranteed_threshold(scores, positive, problem, 0.8, 0.9, method)
    again = guaranteed_threshold(scores[order], positive[order], renamed[order], 0.8, 0.9, method)
    assert again == first


def test_the_highest_threshold_with_the_bound_is_taken() -> None:
    scores, positive, problem = clustered(2)
    found = guaranteed_threshold(scores, positive, problem, 0.9, 0.95, "clopper-pearson")
    higher = min(float(s) for s in scores if s > found)
    bounds = [
        clopper_pearson_lower(int((scores >= t).sum()), len(scores), 0.95) for t in (found, higher)
    ]
    assert bounds[0] >= 0.9 > bounds[1]


def test_the_lower_bound_is_the_binomial_test_turned_around() -> None:
    from scipy.stats import binom

    for caught, total in ((3, 10), (59, 60), (60, 60), (180, 200)):
        bound = clopper_pearson_lower(caught, total, 0.95)
        assert binom.sf(caught - 1, total, bound) == pytest.approx(0.05)
    assert clopper_pearson_lower(0, 10, 0.95) == 0.0


def test_tokens_that_go_together_guarantee_less() -> None:
    scores, positive, problem = clustered(3, alike=0.95)
    by_problem, independent = (
        guaranteed_threshold(scores, positive, problem, 0.8, method=method) for method in METHODS
    )
    assert by_problem < independent


def test_the_guarantee_keeps_its_confidence_where_tokens_are_clustered() -> None:
    # 90 % confidence: of 150 calibration sets 15 may miss, and 23 or more of 150 would be rare
    # (2 %). Clopper and Pearson's bound, which takes tokens for independent, does miss more often.
    missed = {
        method: sum(
            true_recall(guaranteed_threshold(*clustered(seed, 30, 10), 0.9, 0.9, method, seed))
            < 0.9
            for seed in range(150)
        )
        for method in METHODS
    }
    assert missed["cluster-bootstrap"] < 23
    assert missed["clopper-pearson"] >= 23


def test_the_guarantee_keeps_its_confidence_where_tokens_are_independent() -> None:
    missed = sum(
        true_recall(
            guaranteed_threshold(*clustered(seed, 300, 1, 0.0), 0.9, 0.9, "clopper-pearson")
        )
        < 0.9
        for seed in range(150)
    )
    assert missed < 23


@pytest.mark.parametrize("method", METHODS)
def test_too_few_positives_say_how_many_are_needed(method: str) -> None:
    count = 58  # one fewer than 0.05 ** (1 / n) >= 0.95 needs
    scores, problem = np.linspace(0.1, 0.9, count), np.arange(count)
    with pytest.raises(DataError, match=r"58 divergent tokens in 58 problems.*at least 59"):
        guaranteed_threshold(scores, np.ones(count, bool), problem, 0.95, method=method)
    with pytest.raises(DataError, match="no number of tokens guarantees that none is missed"):
        guaranteed_threshold(scores, np.ones(count, bool), problem, 1.0, method=method)


def test_just_enough_positives_give_the_lowest_of_their_scores() -> None:
    scores = np.linspace(0.1, 0.9, 59)
    found = guaranteed_threshold(
        scores, np.ones(59, bool), np.arange(59), 0.95, method="clopper-pearson"
    )
    assert found == 0.1


def test_one_problem_guarantees_nothing_for_others() -> None:
    scores, positive, _ = clustered(4)
    with pytest.raises(DataError, match="of one problem"):
        guaranteed_threshold(scores, positive, np.zeros(len(scores), int), 0.5)


# Targets as text


@given(
    st.one_of(
        st.builds(Target, st.just("recall"), st.floats(0.001, 1)),
        st.builds(Target, st.just("positive_rate"), st.floats(0.001, 1)),
        st.just(Target("f1")),
        st.builds(
            Target, st.just("cost"), miss_cost=st.floats(0, 1e6), call_cost=st.floats(0.1, 1e6)
        ),
        st.builds(
            Target,
            st.just("guarantee"),
            st.floats(0.001, 1),
            confidence=st.floats(0.51, 0.999),
            method=st.sampled_from(METHODS),
        ),
    )
)
def test_a_target_and_its_text_are_one(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("recall=0.95", Target("recall", 0.95)),
        ("positive_rate=0.124", Target("positive_rate", 0.124)),
        ("f1", Target("f1")),
        ("cost=miss:10,call:1", Target("cost", miss_cost=10, call_cost=1)),
        ("cost=call:1, miss:10", Target("cost", miss_cost=10, call_cost=1)),
        ("guarantee=0.95", Target("guarantee", 0.95)),
        (
            "guarantee=0.95,confidence=0.9,method=clopper-pearson",
            Target("guarantee", 0.95, 0.9, "clopper-pearson"),
        ),
    ],
)
def test_targets_as_one_types_them(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown target ''"),
        ("recal=0.9", "unknown target 'recal'; did you mean 'recall'"),
        ("recall", "'recall' cannot be read; write it as recall=0.95"),
        ("recall=", "write it as recall=0.95"),
        ("recall=95", r"recall target must be in \(0, 1\], got 95"),
        ("recall=nan", "recall target must be in"),
        ("recall=0.9,confidence=0.9", "write it as recall=0.95"),
        ("positive_rate=0", "budget must be in"),
        ("positive_rate=12%", "write it as positive_rate=0.124"),
        ("f1=0.5", "write it as f1"),
        ("cost=miss:10", "write it as cost=miss:10,call:1"),
        ("cost=miss:10,miss:2", "write it as cost=miss:10,call:1"),
        ("cost=miss:a,call:1", "write it as cost=miss:10,call:1"),
        ("cost=miss:-1,call:1", "costs must be numbers >= 0"),
        ("cost=miss:0,call:0", "not both 0"),
        ("cost=miss:inf,call:1", "costs must be numbers >= 0"),
        ("guarantee=0.9,confidence=2", "confidence of a guarantee must be in"),
        ("guarantee=0.9,method=boot", "unknown method 'boot'"),
        ("guarantee=0.9,confidence", "write it as guarantee=0.95,confidence=0.95"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target.parse(text)


# What is refused


@pytest.mark.parametrize(
    "target", [Target("recall", 0.9), Target("f1"), Target("cost"), Target("guarantee", 0.9),
               Target("positive_rate", 0.9)],
)  # fmt: skip
def test_no_positive_token_is_refused(target: Target) -> None:
    with pytest.raises(DataError, match="no token is divergent"):
        choose_threshold(target, np.array([0.5, 0.6]), np.zeros(2, bool), np.arange(2), 0)


def test_a_budget_below_the_highest_tie_is_refused() -> None:
    scores = np.array([0.9, 0.9, 0.9, 0.1])
    with pytest.raises(DataError, match="75 % share the highest score"):
        choose_threshold(Target("positive_rate", 0.5), scores, scores > 0.5, np.arange(4), 0)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="1 scores are not finite"):
        threshold_for_recall(np.array([0.5, np.nan]), np.array([True, True]), 0.9)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.01, float("nan")])
def test_recall_out_of_range_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="recall target"):
        threshold_for_recall(np.array([0.5]), np.array([True]), target)
