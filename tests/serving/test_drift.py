"""The drift monitor: what it must not depend on, when it may say drifted, and when it must."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from crossroads.errors import ConfigError, RouterError
from crossroads.routing.checkpoint import RouterCard, SmallModelId, load_router
from crossroads.routing.pretrained import PRETRAINED
from crossroads.serving.drift import (
    DriftMonitor,
    DriftReport,
    Verdict,
    population_stability_index,
)
from crossroads.training.metrics import distance, score_quantiles

SMALL = SmallModelId("small", "scripted", "0" * 64, 4, 8)
THRESHOLD = 0.8
SEEDS = st.integers(0, 2**31)


def calibration_scores(count: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count) ** 4


QUANTILES = score_quantiles(calibration_scores())
RATE = float((calibration_scores() >= THRESHOLD).mean())


def monitor(window: int = 2000, quantiles: list[float] | None = None) -> DriftMonitor:
    promised = (RATE - 0.005, RATE + 0.005)
    return DriftMonitor(quantiles or QUANTILES, THRESHOLD, RATE, promised, window=window)


def report(scores: np.ndarray, window: int = 2000) -> DriftReport:
    found = monitor(window)
    for score in scores.tolist():
        found.observe(score, score > 0.9)
    return found.report()


def answers(count: int, length: int, seed: int) -> np.ndarray:
    """Return scores of the calibration's population, those of one answer like each other."""
    generator = np.random.default_rng(seed)
    common, own = generator.normal(size=(count, 1)), generator.normal(size=(count, length))
    likeness = 0.3
    normal_AN = likeness * common + (1 - likeness**2) ** 0.5 * own
    scores: np.ndarray = ndtr(normal_AN.ravel()) ** 4
    return scores


# Laws


@settings(max_examples=20)
@given(seed=SEEDS, count=st.integers(1, 3000))
def test_only_the_last_window_counts_and_not_its_order(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.random(count)
    whole, last = report(scores, 1000), scores[-1000:]
    assert whole.tokens == count
    assert replace(whole, tokens=0) == replace(report(last, 1000), tokens=0)
    generator.shuffle(last)
    assert report(last, 1000).to_json() == {**whole.to_json(), "tokens": len(last)}


@settings(max_examples=20)
@given(seed=SEEDS, count=st.integers(1, 1500), ties=st.booleans())
def test_shares_are_those_of_the_scores(seed: int, count: int, ties: bool) -> None:
    scores = np.random.default_rng(seed).random(count)
    scores = scores.round(1) if ties else scores
    found = report(scores)
    assert found.live_positive_rate == pytest.approx((scores >= THRESHOLD).mean())
    assert found.live_large_fraction == pytest.approx((scores > 0.9).mean())
    for part in found.bins:
        inside = (scores > part.low) & (scores <= part.high)
        if part.low == 0:
            inside |= scores == 0
        assert part.live == pytest.approx(inside.mean())
    assert sum(part.live or 0 for part in found.bins) == pytest.approx(1)
    assert sum(part.calibration for part in found.bins) == pytest.approx(1)


@settings(max_examples=30)
@given(
    seed=SEEDS,
    count=st.integers(1, 1500),
    power=st.sampled_from([2, 8]),
    ties=st.booleans(),
)
def test_the_distance_is_the_one_that_calibrate_prints(
    seed: int, count: int, power: int, ties: bool
) -> None:
    scores = np.random.default_rng(seed).random(count) ** power
    quantiles = score_quantiles(calibration_scores(500, seed).round(1 if ties else 9))
    found = monitor(quantiles=quantiles)
    for score in scores.tolist():
        found.observe(score, False)
    assert found.report().ks_distance == pytest.approx(distance(quantiles, scores))


@given(counts=st.lists(st.integers(0, 500), min_size=2, max_size=12), seed=SEEDS)
def test_psi_is_never_negative_and_depends_on_no_order_of_bins(
    counts: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    expected_B = generator.dirichlet(np.ones(len(counts))) * 0.9 + 0.1 / len(counts)
    counts_B = np.array(counts)
    found = population_stability_index(expected_B, counts_B)
    order = generator.permutation(len(counts))
    assert found >= 0
    assert found == pytest.approx(population_stability_index(expected_B[order], counts_B[order]))


@given(bins=st.integers(2, 12), each=st.integers(1, 1000))
def test_psi_of_the_expected_shares_is_zero(bins: int, each: int) -> None:
    found = population_stability_index(np.full(bins, 1 / bins), np.full(bins, each))
    assert found == pytest.approx(0, abs=1e-12)


def test_the_calibrations_own_scores_are_flat() -> None:
    found = report(calibration_scores(), 20_000)
    assert [part.calibration for part in found.bins] == pytest.approx([0.1] * 10)
    assert [part.live for part in found.bins] == pytest.approx([0.1] * 10, abs=1e-4)
    assert found.psi == pytest.approx(0, abs=1e-6)
    assert found.live_positive_rate == found.promised_positive_rate
    assert found.ks_distance is not None
    assert found.ks_distance <= 0.011
    assert found.verdict is Verdict.AS_CALIBRATED


def test_tied_scores_share_a_bin_that_holds_all_of_them() -> None:
    tied = np.where(calibration_scores() < 0.2, 0.0, calibration_scores())
    found = monitor(20_000, score_quantiles(tied))
    for score in tied.tolist():
        found.observe(score, False)
    bins = found.report().bins
    assert len(bins) < 10
    assert bins[0].calibration == pytest.approx((tied == 0).mean(), abs=0.01)
    for part in bins:
        assert part.live == pytest.approx(part.calibration, abs=0.011)
    assert found.report().psi == pytest.approx(0, abs=1e-3)


def test_scores_that_are_all_one_have_one_bin() -> None:
    found = monitor(quantiles=[0.5] * 101)
    found.observe(0.5, True)
    assert [(part.calibration, part.live) for part in found.report().bins] == [(1.0, 1.0)]
    assert found.report().psi == 0


@pytest.mark.parametrize("tokens", [1_000, 5_000])
def test_correlated_tokens_of_the_same_population_do_not_cry_wolf(tokens: int) -> None:
    found = [report(answers(tokens // 200, 200, seed), tokens) for seed in range(25)]
    rates = [one.live_positive_rate or 0.0 for one in found]
    assert np.var(rates) * tokens > 3 * RATE * (1 - RATE)  # tokens as correlated as real ones
    assert [one.verdict for one in found] == [Verdict.AS_CALIBRATED] * len(found)


@pytest.mark.parametrize("tokens", [1_000, 5_000])
@pytest.mark.parametrize("power", [0.3, 3.0])
def test_other_scores_are_seen(tokens: int, power: float) -> None:
    for seed in range(5):
        found = report(answers(tokens // 200, 200, seed) ** power, tokens)
        assert found.verdict is Verdict.DRIFTED
        assert found.sentence.startswith("Drifted: ")


def test_a_shift_across_the_threshold_within_a_bin_is_seen() -> None:
    scores = calibration_scores(5000)
    last = QUANTILES[90]
    found = report(np.where((scores > last) & (scores < THRESHOLD), THRESHOLD, scores), 5000)
    assert found.psi == pytest.approx(0, abs=0.01)
    assert found.live_positive_rate == pytest.approx(0.1, abs=0.01)
    assert found.verdict is Verdict.DRIFTED


def test_a_shift_below_the_threshold_is_seen() -> None:
    scores = calibration_scores(5000)
    found = report(np.where(scores < 0.5, scores / 10, scores), 5000)
    assert found.live_positive_rate == pytest.approx(RATE, abs=0.01)
    assert found.psi is not None
    assert found.psi > 0.25
    assert found.verdict is Verdict.DRIFTED


def shifted(found: DriftMonitor, count: int, by: float) -> Verdict:
    """Return the verdict on calibration scores of which `by` more reach the threshold."""
    scores = calibration_scores(count)
    at = np.sort(scores)[round((1 - RATE - by) * count)]
    for score in np.where(scores >= at, np.maximum(scores, THRESHOLD), scores).tolist():
        found.observe(score, False)
    assert found.report().live_positive_rate == pytest.approx(RATE + by, abs=0.001)
    return found.report().verdict


@pytest.mark.parametrize(
    ("count", "width", "drifted"),
    [
        (1000, 0.0, False),  # as many correlated tokens differ by that much
        (20_000, 0.0, True),
        (20_000, 0.02, False),
    ],
)
def test_few_tokens_and_a_wide_promise_are_allowed_more(
    count: int, width: float, drifted: bool
) -> None:
    promised = (RATE - width / 2, RATE + width / 2)
    found = DriftMonitor(QUANTILES, THRESHOLD, RATE, promised, window=count)
    assert (shifted(found, count, 0.03) is Verdict.DRIFTED) is drifted


def test_below_a_thousand_tokens_there_is_no_verdict() -> None:
    ones = np.ones(1000)
    assert report(ones[:999]).verdict is Verdict.TOO_FEW
    assert "999 were seen" in report(ones[:999]).sentence
    assert report(ones).verdict is Verdict.DRIFTED


def test_before_the_first_token_live_numbers_are_none() -> None:
    found = monitor().report()
    assert (found.tokens, found.window, found.verdict) == (0, 0, Verdict.TOO_FEW)
    assert found.live_positive_rate is found.live_large_fraction is None
    assert found.psi is found.ks_distance is found.bins[0].live is None


def test_requests_thresholds_change_the_large_fraction_alone() -> None:
    found, scores = monitor(), calibration_scores(1500).tolist()
    for score in scores:
        found.observe(score, True)
    assert found.report().live_large_fraction == 1
    assert found.report().live_positive_rate == pytest.approx(RATE, abs=0.02)


@pytest.mark.parametrize("tokens", [0, 10, 1200])
def test_a_report_is_plain_json(tokens: int) -> None:
    value = report(calibration_scores(tokens)).to_json()
    read = json.loads(json.dumps(value, allow_nan=False))
    assert read == {**value, "bins": list(value["bins"])}
    assert value["promised_interval"] == {"low": RATE - 0.005, "high": RATE + 0.005}


# The card


def card(**changes: object) -> RouterCard:
    calibration = {
        "point": {"positive_rate": RATE, "tokens": 20_000},
        "positive_rate": {"low": RATE - 0.01, "high": RATE + 0.01},
        "score_quantiles": QUANTILES,
        **changes,
    }
    return RouterCard(SMALL, "large", "1" * 64, "pair", THRESHOLD, calibration)


def test_a_card_gives_its_threshold_promise_and_scores() -> None:
    found = DriftMonitor.from_card(card())
    assert found is not None
    for score in calibration_scores().tolist():
        found.observe(score, False)
    report = found.report()
    assert (report.threshold, report.promised_positive_rate) == (THRESHOLD, RATE)
    assert (report.promised_interval.low, report.promised_interval.high) == (
        RATE - 0.01,
        RATE + 0.01,
    )
    assert report.psi == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "by", "drifted"),
    [
        (20_000, 0.04, True),  # no wider than that of independent tokens
        (320_000, 0.04, False),  # tokens of which ten weigh as much as one
        (200, 0.015, False),  # an interval too narrow to be true
    ],
)
def test_a_cards_interval_tells_how_correlated_tokens_are(
    tokens: int, by: float, drifted: bool
) -> None:
    found = DriftMonitor.from_card(
        card(
            point={"positive_rate": RATE, "tokens": tokens},
            positive_rate={"low": RATE - 0.0025, "high": RATE + 0.0025},
        )
    )
    assert found is not None
    assert (shifted(found, 1000, by) is Verdict.DRIFTED) is drifted


@pytest.mark.parametrize("missing", ["point", "positive_rate", "score_quantiles"])
def test_a_card_without_numbers_to_compare_with_has_no_monitor(missing: str) -> None:
    assert DriftMonitor.from_card(card(**{missing: None})) is None
    assert DriftMonitor.from_card(replace(card(), calibration={})) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"point": {"tokens": 9}}, "without a positive_rate"),
        ({"point": {"positive_rate": "much"}}, "without a positive_rate"),
        ({"positive_rate": 0.2}, "without a positive_rate"),
        ({"positive_rate": {"low": -1, "high": 1}}, "without a positive_rate"),
        ({"score_quantiles": [0.1, 0.2]}, "more than 10 ascending"),
        ({"score_quantiles": [*QUANTILES, 0.5]}, "more than 10 ascending"),
        ({"score_quantiles": [*QUANTILES[:-1], 1.5]}, "more than 10 ascending"),
        ({"score_quantiles": [*QUANTILES[:-1], float("nan")]}, "more than 10 ascending"),
        ({"score_quantiles": ["a"] * 101}, "must be numbers"),
    ],
)
def test_a_damaged_card_is_refused_in_a_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RouterError, match=words):
        DriftMonitor.from_card(card(**changes))


def test_a_window_that_never_reaches_a_verdict_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1000 tokens, got 10"):
        monitor(10)


def test_the_packages_routers_have_monitors() -> None:
    folders = [path.parent for path in PRETRAINED.glob("*/router.json")]
    assert folders
    for folder in folders:
        found = DriftMonitor.from_card(load_router(folder).card)
        assert found is not None
        assert len(found.report().bins) == 10
