import numpy as np
import pytest

from crossroads.errors import DataError
from crossroads.evaluation.statistics import compare
from crossroads.evaluation.trade_off import (
    NEAR,
    RoutedAnswers,
    against_heuristic,
    recovered_gap,
    trade_off_difference,
)


def three_systems(rng, problems, share, samples=1):
    """Return mixed, small and large, where mixed recovers `share` of a gap of 0.4."""
    hard_P = rng.uniform(0.1, 0.4, problems)
    rates = (hard_P + 0.4 * share, hard_P, hard_P + 0.4)
    return [rng.random((problems, samples)) < rate[:, None] for rate in rates]


def routed(rng, rate_P, fraction, samples=1):
    """Return answers with tokens that are the large model's at about `fraction`."""
    generated_P = rng.integers(50, 300, len(rate_P))
    noise_P = np.clip(rng.normal(fraction, 0.1 * fraction * (1 - fraction), len(rate_P)), 0, 1)
    return RoutedAnswers(
        rng.random((len(rate_P), samples)) < rate_P[:, None],
        np.round(noise_P * generated_P).astype(int).tolist(),
        generated_P.tolist(),
    )


def curve_of(rng, rate_P, samples=1):
    """Return a curve from small alone to large alone that gains 0.4 linearly."""
    return [routed(rng, rate_P + 0.4 * f, f, samples) for f in (0.0, 0.25, 0.5, 1.0)]


def picked(answers, order):
    """Return the answers to the problems of `order`."""
    return RoutedAnswers(
        [answers.correct[i] for i in order],
        [answers.large_tokens[i] for i in order],
        [answers.generated_tokens[i] for i in order],
    )


# recovered gap


def test_each_model_alone_recovers_nothing_or_all():
    rng = np.random.default_rng(0)
    _, small, large = three_systems(rng, 200, 0.5)
    for system, value in [(small, 0.0), (large, 1.0)]:
        found = recovered_gap(system, small, large)
        assert found.value == pytest.approx(value)
        assert found.interval.low < value < found.interval.high
        assert found.gap.value == pytest.approx(large.mean() - small.mean())


def test_no_gap_has_no_share_and_says_why():
    mixed, small, large = three_systems(np.random.default_rng(2), 100, 0.5)
    same = recovered_gap(mixed, small, small)
    assert (same.value, same.interval) == (None, None)
    assert same.gap.value == 0.0
    assert "includes 0" in same.reason
    assert "100 problems" in same.reason
    worse = recovered_gap(mixed, large, small)
    assert (worse.value, worse.interval) == (None, None)
    assert "no gap to recover" in worse.reason


@pytest.mark.parametrize("samples", [1, 4])
def test_the_share_is_given_exactly_if_the_gap_excludes_zero(samples):
    rng = np.random.default_rng(3)
    given = 0
    for _ in range(100):
        hard_P = rng.random(25)
        systems = [
            rng.random((25, samples)) < np.minimum(1, hard_P * grow)[:, None]
            for grow in (1.1, 1.0, 1.4)
        ]
        found = recovered_gap(*systems)
        assert (found.value is None) == (found.gap.interval.low <= 0) == (found.interval is None)
        assert (found.value is None) == (found.reason is not None)
        if found.interval:
            given += 1
            assert np.isfinite([found.interval.low, found.interval.high]).all()
            assert found.interval.low < found.value < found.interval.high
    assert 10 < given < 90


def test_the_gap_is_the_comparison_of_the_two_models():
    mixed, small, large = three_systems(np.random.default_rng(4), 80, 0.3)
    gap = recovered_gap(mixed, small, large).gap
    compared = compare(large, small, seed=0)
    assert (gap.value, gap.interval) == (compared.difference, compared.interval)


def test_fiellers_interval_is_where_the_difference_is_not_significant():
    mixed, small, large = three_systems(np.random.default_rng(5), 120, 0.5)
    found = recovered_gap(mixed, small, large)
    gain_P = mixed[:, 0].astype(float) - small[:, 0]
    gap_P = large[:, 0].astype(float) - small[:, 0]

    def statistic(share):
        # The imagined problems, by hand: every combination of signs, two problems in all.
        rest_P = gain_P - share * gap_P
        imagined = np.array([a - share * b for a in (1, -1) for b in (1, -1)])
        total = len(rest_P) + 2
        mean = rest_P.sum() / total
        variance = ((rest_P**2).sum() + (imagined**2).sum() / 2) / total - mean**2
        return abs(mean) / np.sqrt(variance / total)

    for end in (found.interval.low, found.interval.high):
        assert statistic(end) == pytest.approx(1.959963985)
    assert statistic(found.value) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("problems", "share", "samples"), [(60, 0.5, 1), (40, 0.9, 4), (200, 0, 1)]
)
def test_the_interval_of_the_share_covers_the_truth(problems, share, samples):
    rng = np.random.default_rng(6)
    covered = given = 0
    for _ in range(300):
        found = recovered_gap(*three_systems(rng, problems, share, samples))
        if found.interval:
            given += 1
            covered += found.interval.low <= share <= found.interval.high
    assert given >= 290
    assert covered / given >= 0.92


def test_the_order_of_problems_changes_no_share():
    systems = three_systems(np.random.default_rng(7), 50, 0.5, samples=3)
    order = np.random.default_rng(0).permutation(50)
    assert recovered_gap(*systems) == recovered_gap(*[system[order] for system in systems])


def test_mistakes_of_a_gap_are_one_sentence():
    with pytest.raises(DataError, match="same problems"):
        recovered_gap([[True]], [[True], [False]], [[True], [False]])
    with pytest.raises(DataError, match="no problems"):
        recovered_gap([], [], [])


# accuracy at equal large_fraction


def test_a_point_of_the_curve_is_no_different_from_the_curve():
    rng = np.random.default_rng(8)
    curve = curve_of(rng, rng.uniform(0, 0.5, 60), samples=2)
    for point in curve:
        found = trade_off_difference(point, curve, seed=0)
        assert found.large_fraction == point.large_fraction
        assert found.comparison.difference == pytest.approx(0.0, abs=1e-12)
        assert found.comparison.p_value == 1.0
        # Not surely the same either: see the rule of three.
        assert 0.04 < found.comparison.interval.high == -found.comparison.interval.low


def test_at_a_known_fraction_it_is_the_paired_comparison():
    rng = np.random.default_rng(9)
    rate_P = rng.uniform(0, 0.5, 80)
    generated = [100] * 80
    # Every problem has the same fractions, so they have no uncertainty of their own.
    curve = [
        RoutedAnswers(rng.random((80, 3)) < rate_P[:, None], [large] * 80, generated)
        for large in (0, 30, 100)
    ]
    system = RoutedAnswers(rng.random((80, 3)) < rate_P[:, None] + 0.2, [30] * 80, generated)
    found = trade_off_difference(system, curve, seed=5).comparison
    paired = compare(system.correct, curve[1].correct, seed=5)
    assert found.difference == pytest.approx(paired.difference)
    assert found.interval.low == pytest.approx(paired.interval.low)
    assert found.interval.high == pytest.approx(paired.interval.high)
    assert found.p_value == pytest.approx(paired.p_value, abs=1e-3)


def test_between_two_points_accuracy_is_linear_in_the_fraction():
    generated = [10] * 8
    low = RoutedAnswers([[True]] * 2 + [[False]] * 6, [1] * 8, generated)
    high = RoutedAnswers([[True]] * 6 + [[False]] * 2, [5] * 8, generated)
    system = RoutedAnswers([[True]] * 5 + [[False]] * 3, [2] * 8, generated)
    found = trade_off_difference(system, [low, high], seed=0)
    assert found.large_fraction == pytest.approx(0.2)
    assert found.comparison.difference == pytest.approx(5 / 8 - (2 / 8 + 0.25 * 4 / 8))
    assert found.comparison.interval.low < found.comparison.difference
    assert found.comparison.difference < found.comparison.interval.high


def test_outside_of_the_curve_there_is_no_comparison():
    rng = np.random.default_rng(10)
    rate_P = rng.uniform(0, 0.5, 30)
    curve = [routed(rng, rate_P, fraction) for fraction in (0.2, 0.4)]
    for fraction in (0.05, 0.7):
        found = trade_off_difference(routed(rng, rate_P, fraction), curve, seed=0)
        assert found.comparison is None
        assert "outside of the curve's 0." in found.reason
    alone = trade_off_difference(curve[0], curve[:1], seed=0)
    assert alone.comparison is None
    assert "one large_fraction only" in alone.reason


def exactly(rng, fraction):
    """Return answers to 40 problems, all of the same large_fraction."""
    return RoutedAnswers(rng.random((40, 1)) < 0.5, [round(1000 * fraction)] * 40, [1000] * 40)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_router_is_compared_with_a_heuristic_that_was_run_near_it_only(side):
    rng = np.random.default_rng(14)
    alone = [exactly(rng, 0), exactly(rng, 1)]
    router = exactly(rng, 0.2)
    near, far = (exactly(rng, 0.2 * (1 + side * (NEAR + step))) for step in (-0.01, 0.01))
    for run in ([near], [near, far]):
        expected = trade_off_difference(router, [*alone, *run], seed=0)
        assert against_heuristic(router, run, alone, seed=0) == expected
        assert expected.comparison is not None
    refused = against_heuristic(router, [far, exactly(rng, 0.9)], alone, seed=0)
    assert refused.comparison is None
    assert f"is {far.large_fraction:.3f}, too far" in refused.reason
    assert "~0.200" in refused.reason


def test_a_router_that_sends_nothing_is_compared_where_the_small_model_alone_is():
    rng = np.random.default_rng(15)
    alone = [exactly(rng, 0), exactly(rng, 1)]
    found = against_heuristic(exactly(rng, 0), [exactly(rng, 0.5)], alone, seed=0)
    assert found.comparison is not None


def test_fractions_that_hang_on_one_problem_are_refused():
    correct, generated = [[True]] * 3, [10] * 3
    low = RoutedAnswers(correct, [0, 0, 0], generated)
    high = RoutedAnswers(correct, [9, 0, 0], generated)
    system = RoutedAnswers(correct, [3, 0, 0], generated)
    found = trade_off_difference(system, [low, high], seed=0)
    assert found.comparison is None
    assert "one of the 3 problems alone" in found.reason
    lone = RoutedAnswers(correct, [3, 0, 0], [10, 0, 0])
    ends = [RoutedAnswers(correct, [large] * 3, generated) for large in (0, 10)]
    assert trade_off_difference(lone, ends, seed=0).reason == found.reason
    single = RoutedAnswers([[True]], [5], [10])
    ends = [RoutedAnswers([[True]], [large], [10]) for large in (0, 10)]
    assert trade_off_difference(single, ends, seed=0).comparison is None


def test_order_of_problems_and_of_thresholds_changes_nothing():
    rng = np.random.default_rng(11)
    rate_P = rng.uniform(0, 0.5, 40)
    system, curve = routed(rng, rate_P + 0.1, 0.3, 2), curve_of(rng, rate_P, 2)
    order = rng.permutation(40)
    found = trade_off_difference(system, curve, seed=2)
    moved = trade_off_difference(
        picked(system, order), [picked(point, order) for point in curve[::-1]], seed=2
    )
    assert moved.comparison.difference == pytest.approx(found.comparison.difference)
    assert moved.comparison.interval.low == pytest.approx(found.comparison.interval.low)
    assert moved.comparison.p_value == pytest.approx(found.comparison.p_value, abs=1e-3)


@pytest.mark.parametrize(("problems", "samples", "truth"), [(40, 1, 0.0), (60, 4, 0.1)])
def test_the_difference_at_equal_fraction_covers_the_truth(problems, samples, truth):
    rng = np.random.default_rng(12)
    covered = called = 0
    for trial in range(150):
        rate_P = rng.uniform(0, 0.4, problems)
        system = routed(rng, rate_P + 0.4 * 0.35 + truth, 0.35, samples)
        found = trade_off_difference(system, curve_of(rng, rate_P, samples), trial).comparison
        covered += found.interval.low <= truth <= found.interval.high
        called += found.p_value <= 0.05
    assert covered / 150 >= 0.92
    assert truth or called / 150 <= 0.09


def test_uncertain_fractions_widen_the_interval():
    rng = np.random.default_rng(13)
    correct = [rng.random((60, 2)) < rate for rate in (0.1, 0.9, 0.5)]
    generated = [100] * 60

    def width(spread):
        large_P = 40 + np.tile([-spread, spread], 30)
        system = RoutedAnswers(correct[2], large_P.tolist(), generated)
        ends = [
            RoutedAnswers(rows, [large] * 60, generated)
            for rows, large in zip(correct, (0, 100), strict=False)
        ]
        interval = trade_off_difference(system, ends, seed=0).comparison.interval
        return interval.high - interval.low

    assert width(40) > 1.1 * width(0)


def test_mistakes_of_a_trade_off_are_one_sentence():
    answers = RoutedAnswers([[True]] * 2, [1, 2], [4, 4])
    with pytest.raises(DataError, match="got 2, 1 and 2"):
        RoutedAnswers([[True]] * 2, [1], [4, 4])
    with pytest.raises(DataError, match="more tokens of the large model"):
        RoutedAnswers([[True]] * 2, [5, 0], [4, 4])
    with pytest.raises(DataError, match="no tokens"):
        RoutedAnswers([[True]] * 2, [0, 0], [0, 0])
    with pytest.raises(DataError, match="at least one threshold"):
        trade_off_difference(answers, [], seed=0)
    with pytest.raises(DataError, match="same problems, got 2 and 3"):
        trade_off_difference(answers, [RoutedAnswers([[True]] * 3, [1] * 3, [4] * 3)], seed=0)
