import math

import numpy as np
import pytest

from crossroads.errors import DataError
from crossroads.statistics import (
    Interval,
    accuracy_interval,
    cluster_bootstrap,
    paired_difference,
    ratio_interval,
    wilson_interval,
)


def test_wilson_equals_published_values():
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for successes, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = wilson_interval(successes, total)
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_never_leaves_the_unit_interval():
    for total in (1, 7, 40):
        for successes in range(total + 1):
            a, b = wilson_interval(successes, total), wilson_interval(total - successes, total)
            assert 0.0 <= a.low <= successes / total <= a.high <= 1.0
            assert a.low == pytest.approx(1 - b.high)


def test_wilson_of_nothing_is_everything():
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize("call", [(3, 2), (-1, 2), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_impossible_counts_and_levels(call):
    with pytest.raises(DataError):
        wilson_interval(*call)


def test_accuracy_interval_counts_trues():
    assert accuracy_interval([True, False, True]) == wilson_interval(2, 3)


def test_ratio_interval_contains_the_ratio_and_shrinks_with_data():
    rng = np.random.default_rng(0)
    denominators = rng.integers(50, 150, 400)
    numerators = rng.binomial(denominators, 0.2)
    wide = ratio_interval(numerators[:20], denominators[:20], seed=1)
    narrow = ratio_interval(numerators, denominators, seed=1)
    assert wide.low < numerators[:20].sum() / denominators[:20].sum() < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low


def test_no_interval_depends_on_the_order_of_problems():
    rng = np.random.default_rng(3)
    top, bottom = rng.integers(0, 9, 30), rng.integers(9, 30, 30)
    values = [rng.normal(size=size) for size in rng.integers(1, 6, 12)]
    order, value_order = rng.permutation(30), rng.permutation(12)
    assert ratio_interval(top, bottom, 5) == ratio_interval(top[order], bottom[order], 5)
    a = cluster_bootstrap(values, np.median, 5, n=200)
    b = cluster_bootstrap([values[i][::-1] for i in value_order], np.median, 5, n=200)
    assert a == b
    assert paired_difference(top, bottom, 5) == paired_difference(top[order], bottom[order], 5)


def test_ratio_interval_equals_the_general_bootstrap_of_a_mean():
    rng = np.random.default_rng(4)
    values = [rng.binomial(1, 0.3, size).astype(float) for size in rng.integers(5, 15, 60)]
    fast = ratio_interval([v.sum() for v in values], [v.size for v in values], 0)
    slow = cluster_bootstrap(values, np.mean, 0)
    assert fast.low == pytest.approx(slow.low, abs=0.01)
    assert fast.high == pytest.approx(slow.high, abs=0.01)


def test_clusters_matter():
    # 20 problems of 100 equal tokens carry 20 observations, not 2000.
    outcomes = np.tile([0.0, 1.0], 10)
    clustered = ratio_interval(outcomes * 100, np.full(20, 100), seed=0)
    naive = wilson_interval(1000, 2000)
    assert clustered.high - clustered.low > 5 * (naive.high - naive.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(200):
        rates = rng.beta(2, 8, size=60)
        sizes = rng.integers(40, 120, size=60)
        interval = ratio_interval(rng.binomial(sizes, rates), sizes, trial, resamples=400)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_chunks_of_resamples_do_not_change_the_result(monkeypatch):
    top, bottom = np.arange(12), np.full(12, 20)
    whole = ratio_interval(top, bottom, 2, resamples=101)
    monkeypatch.setattr("crossroads.statistics._MAX_DRAWN", 60)
    assert ratio_interval(top, bottom, 2, resamples=101) == whole


def test_clusters_without_anything_change_nothing():
    top, bottom = np.array([1, 4, 2]), np.array([3, 9, 9])
    spread = ratio_interval(np.insert(top, [0, 2], 0), np.insert(bottom, [0, 2], 0), seed=0)
    assert spread == ratio_interval(top, bottom, seed=0)
    assert ratio_interval([1, 0, 0], [2, 0, 0], seed=0) == Interval(0.0, 1.0)


def test_resamples_without_a_denominator_are_left_out():
    interval = ratio_interval([1, 1], [2, 0], seed=0)
    assert interval == Interval(0.5, 1.0)


def test_one_cluster_promises_nothing():
    assert ratio_interval([3], [10], seed=0) == Interval(0.0, 1.0)
    assert paired_difference([1.0], [0.0], seed=0).interval == Interval(-1.0, 1.0)
    with pytest.raises(DataError, match="single cluster"):
        ratio_interval([30], [10], seed=0)
    with pytest.raises(DataError, match="at least two"):
        cluster_bootstrap([[1.0, 2.0]], np.mean, 0)


def test_ratio_interval_refuses_what_has_no_ratio():
    with pytest.raises(DataError, match="positive denominator"):
        ratio_interval([0, 0], [0, 0], seed=0)
    with pytest.raises(DataError, match="per cluster"):
        ratio_interval([1, 2], [1], seed=0)


def test_pairing_finds_a_difference_that_two_intervals_hide():
    rng = np.random.default_rng(8)
    hard = rng.random(80)
    first = (hard < 0.6).astype(float)
    second = (hard < 0.5).astype(float)
    found = paired_difference(first, second, seed=0)
    assert found.value == pytest.approx((first - second).mean())
    assert found.interval.low > 0
    assert accuracy_interval(second > 0).high > accuracy_interval(first > 0).low


def test_pairing_refuses_different_problems():
    with pytest.raises(DataError, match="same problems"):
        paired_difference([1.0, 0.0], [1.0], seed=0)
    with pytest.raises(DataError, match="same problems"):
        paired_difference([], [], seed=0)


def test_levels_nest():
    top, bottom = np.arange(20), np.full(20, 40)
    narrow, wide = (ratio_interval(top, bottom, 0, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert not math.isnan(wide.low)
