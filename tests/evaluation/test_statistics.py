import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from crossroads.errors import DataError
from crossroads.evaluation.statistics import (
    FLIPS,
    MCNEMAR,
    SIGN_FLIP,
    average_at_k,
    compare,
    difference_interval,
    pass_at_k,
    sign_flip_p_value,
)
from crossroads.statistics import accuracy_interval, wilson_interval


def draw(rng, rates, samples):
    """Return for each problem `samples` answers that are right with its rate."""
    return rng.random((len(rates), samples)) < np.asarray(rates)[:, None]


def paired(first_only, second_only, both=3, neither=4):
    """Return two systems with one sample per problem and these counts."""
    first = [[True]] * first_only + [[False]] * second_only + [[True]] * both + [[False]] * neither
    second = [[False]] * first_only + [[True]] * second_only + [[True]] * both + [[False]] * neither
    return first, second


def width(interval):
    return interval.high - interval.low


def close(first, second, rel=1e-9):
    return first.low == pytest.approx(second.low, rel=rel) and first.high == pytest.approx(
        second.high, rel=rel
    )


# avg@k


def test_one_sample_per_problem_is_wilsons_interval():
    for total in (1, 2, 9, 60):
        for right in range(total + 1):
            flat = [True] * right + [False] * (total - right)
            found = average_at_k([[answer] for answer in flat])
            assert found.value == right / total
            assert close(found.interval, accuracy_interval(flat))


def test_every_problem_counts_alike_however_many_samples_it_has():
    assert average_at_k([[True] * 9, [False], [True, False]]).value == pytest.approx(0.5)


def test_samples_that_copy_each_other_say_nothing_new():
    rng = np.random.default_rng(0)
    once = draw(rng, rng.random(25), 1)
    for copies in (2, 16):
        repeated = average_at_k(np.repeat(once, copies, axis=1))
        assert close(repeated.interval, average_at_k(once).interval)


def test_samples_that_are_all_alike_leave_the_uncertainty_of_the_problems():
    for samples in (1, 4, 64):
        right = average_at_k([[True] * samples] * 12)
        wrong = average_at_k([[False] * samples] * 12)
        assert close(right.interval, wilson_interval(12, 12))
        assert close(wrong.interval, wilson_interval(0, 12))


def test_nearly_alike_is_nearly_as_uncertain():
    alike = average_at_k([[False] * 4] * 100)
    nearly = average_at_k([[False] * 4] * 99 + [[False] * 3 + [True]])
    assert nearly.interval.high == pytest.approx(alike.interval.high, abs=0.01)


def test_independent_samples_narrow_the_interval_but_no_further_than_they_can():
    rng = np.random.default_rng(1)
    one, sixteen = (average_at_k(draw(rng, [0.5] * 200, k)) for k in (1, 16))
    independent = wilson_interval(1600, 3200)
    assert width(sixteen.interval) < 0.35 * width(one.interval)
    assert width(sixteen.interval) > 0.85 * width(independent)


def test_equal_shares_are_few_problems_and_no_point():
    assert width(average_at_k([[True, False]] * 5).interval) > 0.3


@pytest.mark.parametrize(
    ("problems", "samples", "a", "b"),
    [(10, 4, 2, 2), (30, 16, 0.3, 0.5), (40, 4, 50, 50), (40, 1, 2, 1), (60, 8, 1, 9)],
)
def test_average_covers_the_truth_about_as_often_as_it_says(problems, samples, a, b):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        found = average_at_k(draw(rng, rng.beta(a, b, problems), samples)).interval
        covered += found.low <= a / (a + b) <= found.high
    assert 0.92 <= covered / 400 <= 0.995


# pass@k


def test_pass_at_one_is_the_average():
    rng = np.random.default_rng(3)
    correct = draw(rng, rng.random(20), 7)
    one, average = pass_at_k(correct, 1), average_at_k(correct)
    assert one.value == pytest.approx(average.value)
    assert close(one.interval, average.interval)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for right in range(7):
        samples = [True] * right + [False] * (6 - right)
        for k in range(1, 7):
            counted = np.mean([any(chosen) for chosen in combinations(samples, k)])
            assert pass_at_k([samples], k).value == pytest.approx(counted)


def test_pass_at_k_grows_with_k_and_ends_at_any():
    rng = np.random.default_rng(4)
    correct = draw(rng, rng.beta(0.5, 2, 30), 10)
    values = [pass_at_k(correct, k).value for k in range(1, 11)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(correct.any(axis=1).mean())
    assert close(pass_at_k(correct, 10).interval, accuracy_interval(list(correct.any(axis=1))))


def test_pass_at_k_survives_many_samples():
    samples = [True] * 50 + [False] * 9950
    exact = 1 - math.comb(9950, 500) / math.comb(10000, 500)
    assert pass_at_k([samples], 500).value == pytest.approx(exact, rel=1e-9)


def test_pass_at_k_covers_the_truth():
    rng = np.random.default_rng(5)
    truth = 1 - (3 * 4 * 5) / (4 * 5 * 6)  # 1 - E[(1 - p)^3] with p of Beta(1, 3)
    covered = 0
    for _ in range(300):
        found = pass_at_k(draw(rng, rng.beta(1, 3, 40), 8), 3).interval
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.92


def test_pass_at_k_refuses_too_few_samples():
    with pytest.raises(DataError, match="pass@3 needs 3 samples of every problem, got 2"):
        pass_at_k([[True] * 4, [True, False]], 3)
    with pytest.raises(DataError, match="at least 1"):
        pass_at_k([[True]], 0)
    with pytest.raises(DataError, match="no problems"):
        pass_at_k([], 1)


# compare


def test_mcnemar_is_the_binomial_test_of_the_discordant_problems():
    for only_first, only_second in [(0, 0), (1, 0), (0, 6), (3, 3), (2, 9), (11, 4), (40, 75)]:
        found = compare(*paired(only_first, only_second), seed=0)
        discordant = only_first + only_second
        expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
        assert found.test == MCNEMAR
        assert found.p_value == pytest.approx(expected)


def test_the_interval_of_one_sample_each_is_that_of_bonett_and_price():
    # 1 and 7 discordant of 21: the data of Fagerland, Lydersen and Laake (2014), by hand.
    found = compare(*paired(1, 7, both=1, neither=12), seed=0)
    p12, p21 = 2 / 23, 8 / 23
    half = 1.959963985 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 23)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.interval.low == pytest.approx(p12 - p21 - half)
    assert found.interval.high == pytest.approx(p12 - p21 + half)


def test_sign_flips_of_copied_samples_are_mcnemars_test():
    for counts in [(2, 9), (5, 6), (12, 3)]:
        first, second = paired(*counts)
        exact = compare(first, second, seed=0)
        copied = compare([row * 2 for row in first], [row * 2 for row in second], seed=0)
        assert copied.test == SIGN_FLIP
        assert copied.p_value == pytest.approx(exact.p_value, abs=0.015)
        assert close(copied.interval, exact.interval)


def test_sign_flips_equal_all_patterns_counted():
    difference_P = np.array([0.5, -0.25, 0.75, 0.0, 1.0, 0.25, 0.5])
    moved = difference_P[difference_P != 0]
    patterns = np.array(np.meshgrid(*[[-1, 1]] * len(moved))).reshape(len(moved), -1)
    exact = (np.abs(moved @ patterns) >= abs(moved.sum()) - 1e-12).mean()
    assert sign_flip_p_value(difference_P, seed=0) == pytest.approx(exact, abs=0.01)


def test_no_p_value_is_zero():
    assert sign_flip_p_value(np.ones(200), seed=0) == 1 / (1 + FLIPS)


@pytest.mark.parametrize("samples", [1, 5])
def test_compare_is_antisymmetric_and_blind_to_order(samples):
    rng = np.random.default_rng(6)
    first, second = (draw(rng, rng.random(31), samples) for _ in range(2))
    found, turned = compare(first, second, seed=3), compare(second, first, seed=3)
    assert turned.difference == -found.difference
    assert (turned.interval.low, turned.interval.high) == (
        -found.interval.high,
        -found.interval.low,
    )
    assert turned.p_value == found.p_value
    order = rng.permutation(31)
    assert compare(first[order], second[order], seed=3) == found
    assert average_at_k(first[order]) == average_at_k(first)
    assert pass_at_k(first[order], samples) == pass_at_k(first, samples)


def test_the_order_of_problems_does_not_even_change_the_rounding():
    rng = np.random.default_rng(13)
    correct = draw(rng, rng.random(200), 7)
    for _ in range(5):
        order = rng.permutation(200)
        assert average_at_k(correct[order]) == average_at_k(correct)
        assert pass_at_k(correct[order], 3) == pass_at_k(correct, 3)


def test_one_sample_against_several_is_no_matter_of_discordant_problems():
    several = [[True, False, True]] * 5 + [[False] * 3]
    assert compare([[True]] * 6, several, seed=0).test == SIGN_FLIP
    assert compare(several, [[True]] * 6, seed=0).test == SIGN_FLIP


@pytest.mark.parametrize("samples", [1, 4])
def test_a_system_is_never_different_from_itself_nor_surely_the_same(samples):
    rng = np.random.default_rng(7)
    for problems in (1, 10, 300):
        system = draw(rng, rng.random(problems), samples)
        found = compare(system, system, seed=0)
        assert (found.difference, found.p_value) == (0.0, 1.0)
        assert found.interval.low == -found.interval.high
        # Hanley and Lippman-Hand (1983): nothing seen among n, up to about 3 / n may be there.
        assert 0.75 * min(1.0, 3 / problems) <= found.interval.high <= min(1.0, 3.1 / problems)


def test_few_small_differences_do_not_prove_that_all_are_small():
    same = [[True] * 16] * 30
    nearly = [[True] * 16] * 29 + [[True] * 15 + [False]]
    all_agree, one_differs = (compare(same, other, seed=0) for other in (same, nearly))
    assert width(one_differs.interval) > 0.6 * width(all_agree.interval)


def test_many_small_differences_are_measured_by_their_own_size():
    difference_P = np.random.default_rng(14).choice([-0.2, -0.1, 0.1, 0.2, 0.3], 60)
    normal = 2 * 1.959963985 * difference_P.std(ddof=1) / np.sqrt(60)
    assert 0.95 * normal <= width(difference_interval(difference_P)) <= 1.15 * normal


def test_values_lie_in_their_intervals_at_any_level():
    rng = np.random.default_rng(8)
    for level in (0.05, 0.5, 0.95, 0.999):
        for problems, samples in [(1, 1), (1, 3), (4, 1), (15, 6)]:
            first, second = (draw(rng, rng.random(problems), samples) for _ in range(2))
            found = compare(first, second, 0, level)
            assert -1 <= found.interval.low <= found.difference <= found.interval.high <= 1
            for estimate in (average_at_k(first, level), pass_at_k(first, samples, level)):
                low, high = estimate.interval.low, estimate.interval.high
                assert 0 <= low <= estimate.value <= high <= 1


def test_levels_nest():
    rng = np.random.default_rng(9)
    first, second = (draw(rng, rng.random(30), 4) for _ in range(2))
    for narrow, wide in [
        (average_at_k(first, 0.5).interval, average_at_k(first, 0.99).interval),
        (compare(first, second, 0, 0.5).interval, compare(first, second, 0, 0.99).interval),
    ]:
        assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("problems", "samples", "shift"),
    [(20, 1, 0.2), (60, 1, 0.05), (10, 8, 0.1), (30, 16, 0.05), (50, 4, 0.3)],
)
def test_the_interval_of_a_difference_covers_the_truth(problems, samples, shift):
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(400):
        hard_P = rng.uniform(0, 0.6, problems)
        gain_P = rng.choice([0.0, 2 * shift], problems)
        first, second = draw(rng, hard_P + gain_P, samples), draw(rng, hard_P, samples)
        difference_P = first.mean(axis=1) - second.mean(axis=1)
        found = difference_interval(difference_P)
        covered += found.low <= shift <= found.high
    assert covered / 400 >= 0.92


@pytest.mark.parametrize("samples", [1, 4])
def test_no_difference_is_rarely_called_one(samples):
    rng = np.random.default_rng(11)
    called = 0
    for trial in range(200):
        rates = rng.random(25)
        found = compare(draw(rng, rates, samples), draw(rng, rates, samples), trial)
        called += found.p_value <= 0.05
    assert called / 200 <= 0.08


def test_a_clear_difference_is_found():
    rng = np.random.default_rng(12)
    for samples in (1, 4):
        found = compare(draw(rng, [0.8] * 60, samples), draw(rng, [0.3] * 60, samples), 0)
        assert found.interval.low > 0
        assert found.p_value < 0.001


def test_mistakes_are_one_sentence():
    with pytest.raises(DataError, match="same problems, got 2 and 1"):
        compare([[True], [False]], [[True]], 0)
    with pytest.raises(DataError, match="problem 1 of 2 has no samples"):
        average_at_k([[True], []])
    with pytest.raises(DataError, match="no problems"):
        compare([], [], 0)
    for call in (average_at_k, lambda rows, level: compare(rows, rows, 0, level)):
        with pytest.raises(DataError, match="confidence level"):
            call([[True], [False]], 1.0)
