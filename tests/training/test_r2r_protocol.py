"""R2R's choice of a threshold against a plain retelling of it, and ours beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError, DataError
from crossroads.training.r2r.protocol import (
    OBJECTIVE_GRID,
    RECALL_GRID,
    START,
    Scored,
    metrics,
    optimise,
    side_by_side,
    stop_epoch,
)
from crossroads.training.threshold import threshold_for_recall

RECALLS = st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0])


@st.composite
def scored_rows(draw: st.DrawFn) -> Scored:
    """Draw rows with a positive; few distinct scores, so that many are equal or on the grid."""
    on_grid = st.sampled_from([float(t) for t in RECALL_GRID[::9]])
    score = st.one_of(on_grid, st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
    scores = draw(st.lists(score, min_size=1, max_size=40))
    positive = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    positive[draw(st.integers(0, len(scores) - 1))] = True
    return Scored(np.array(scores), np.array(positive), np.arange(len(scores)) % 5)


def counted(rows: Scored, threshold: float) -> tuple[int, int, int, int]:
    """Return true and false positives, false and true negatives, counted one by one."""
    found = [0, 0, 0, 0]
    for score, positive in zip(rows.scores_N.tolist(), rows.positive_N.tolist(), strict=True):
        found[(0 if positive else 1) if score >= threshold else (2 if positive else 3)] += 1
    return found[0], found[1], found[2], found[3]


def retold(rows: Scored, min_recall: float) -> tuple[float, bool]:
    """Return R2R's threshold by walking up its grid, and whether it reached the recall."""
    best, best_rate, recalls = None, 100.0, []
    for threshold in RECALL_GRID.tolist():
        tp, fp, fn, _ = counted(rows, threshold)
        recalls.append(tp / (tp + fn))
        rate = 100 * (tp + fp) / len(rows.scores_N)
        if recalls[-1] >= min_recall and rate < best_rate:
            best, best_rate = threshold, rate
    if best is not None:
        return best, True
    return float(RECALL_GRID[recalls.index(max(recalls))]), False


def test_the_grids_are_r2rs() -> None:
    assert len(RECALL_GRID) == 100
    assert (RECALL_GRID[0], RECALL_GRID[-1]) == (0.01, 0.99)
    # Thresholds that R2R's runs are known to have ended with are points of it.
    assert RECALL_GRID[33] == pytest.approx(0.3367, abs=5e-5)
    assert RECALL_GRID[40] == pytest.approx(0.40595959595959596, abs=1e-15)
    assert OBJECTIVE_GRID.tolist() == pytest.approx([k / 10 for k in range(1, 10)])


@given(scored_rows(), RECALLS)
def test_the_grid_choice_is_the_retold_one(rows: Scored, min_recall: float) -> None:
    config = {"type": "threshold", "min_recall": min_recall}
    choice = optimise(config, rows.scores_N, rows.positive_N).choice
    assert (choice.threshold, choice.met) == retold(rows, min_recall)


@given(scored_rows())
def test_without_a_recall_r2r_wants_ninety_percent(rows: Scored) -> None:
    choice = optimise({"type": "threshold"}, rows.scores_N, rows.positive_N).choice
    assert (choice.threshold, choice.met) == retold(rows, 0.9)


@given(scored_rows(), st.sampled_from(["f1", "recall", "precision"]))
def test_the_objective_is_the_first_best_of_nine(rows: Scored, metric: str) -> None:
    values = []
    for threshold in OBJECTIVE_GRID.tolist():
        tp, fp, fn, _ = counted(rows, threshold)
        part = 2 * tp if metric == "f1" else tp
        over = {"f1": 2 * tp + fp + fn, "recall": tp + fn, "precision": tp + fp}[metric]
        values.append(part / over if over else 0.0)
    best = max(values)
    wanted = float(OBJECTIVE_GRID[values.index(best)]) if best > 0 else 0.5
    config = {"type": "objective", "metric": metric}
    assert optimise(config, rows.scores_N, rows.positive_N).choice.threshold == wanted


@given(scored_rows(), st.floats(0, 1))
def test_metrics_are_the_counts_of_the_four_kinds(rows: Scored, threshold: float) -> None:
    tp, fp, fn, tn = counted(rows, threshold)
    found, count = metrics(rows.scores_N, rows.positive_N, threshold), len(rows.scores_N)
    assert found.accuracy == (tp + tn) / count
    assert found.recall == tp / (tp + fn)
    assert found.positive_rate == (tp + fp) / count
    assert found.f1 == 2 * tp / (2 * tp + fp + fn)
    if tp + fp:
        assert found.precision == tp / (tp + fp)
        # So the share of positives follows from three of R2R's numbers.
        caught = found.recall * (tp + fn) / count
        assert found.precision * found.positive_rate == pytest.approx(caught)
    else:
        assert math.isnan(found.precision)


@given(scored_rows(), st.sampled_from(["threshold", "objective", "skip"]))
def test_what_is_reported_is_measured_at_the_choice_and_at_one_half(
    rows: Scored, kind: str
) -> None:
    found = optimise({"type": kind, "metric": "f1"}, rows.scores_N, rows.positive_N)
    at_choice = metrics(rows.scores_N, rows.positive_N, found.choice.threshold)
    assert repr(found.final) == repr(at_choice)  # repr, since nan is not itself
    before = repr(metrics(rows.scores_N, rows.positive_N, START))
    assert repr(found.before) == ("None" if kind == "skip" else before)
    if kind == "skip":
        assert found.choice.threshold == START == 0.5


@given(scored_rows(), RECALLS)
def test_an_exact_threshold_sends_no_more_than_the_grid(rows: Scored, recall: float) -> None:
    config = {"type": "threshold", "min_recall": recall}
    grid = optimise(config, rows.scores_N, rows.positive_N)
    exact = threshold_for_recall(rows.scores_N, rows.positive_N, recall)
    found = metrics(rows.scores_N, rows.positive_N, exact)
    assert found.recall >= recall - 1e-9
    if grid.choice.met:
        assert found.positive_rate <= grid.final.positive_rate


def test_a_network_below_the_grid_meets_nothing() -> None:
    scores_N, positive_N = np.array([0.001, 0.002, 0.003]), np.array([True, True, False])
    found = optimise({"type": "threshold", "min_recall": 0.95}, scores_N, positive_N)
    assert not found.choice.met
    assert found.choice.threshold == pytest.approx(0.01)
    assert found.final.recall == 0


def test_sending_everything_is_never_r2rs_choice() -> None:
    scores_N, positive_N = np.array([0.995, 0.995]), np.array([True, False])
    found = optimise({"type": "threshold", "min_recall": 0.95}, scores_N, positive_N)
    assert not found.choice.met
    assert found.final.positive_rate == 1


@given(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8]), min_size=1, max_size=20), st.integers(1, 6))
def test_training_stops_after_patience_epochs_in_a_row_that_are_not_better(
    losses: list[float], patience: int
) -> None:
    best, last = stop_epoch(losses, patience)
    assert best == losses[:last].index(min(losses[:last])) + 1
    assert last - best == patience or last == len(losses)
    # Nothing stops it earlier: no such wait is over before the last epoch.
    for epoch in range(1, last):
        seen = losses[:epoch]
        assert epoch - (seen.index(min(seen)) + 1) < patience


def drawn(generator: np.random.Generator, rows: int) -> Scored:
    positive_N = generator.random(rows) < 0.2
    scores_N = generator.random(rows) * 0.6 + 0.3 * positive_N
    return Scored(scores_N, positive_N, generator.integers(0, 12, rows))


def test_side_by_side_chooses_and_measures_where_it_says() -> None:
    generator = np.random.default_rng(0)
    calibration, test = drawn(generator, 400), drawn(generator, 300)
    held = calibration.and_also(test)
    assert len(set(held.problem_N)) == len(set(calibration.problem_N)) + len(set(test.problem_N))
    config = {"type": "threshold", "min_recall": 0.9}
    lines = side_by_side(config, held, calibration, test, 0.9, seed=0)
    thresholds = [
        optimise(config, held.scores_N, held.positive_N).choice.threshold,
        threshold_for_recall(held.scores_N, held.positive_N, 0.9),
        threshold_for_recall(calibration.scores_N, calibration.positive_N, 0.9),
    ]
    for line, threshold, rows in zip(lines, thresholds, (held, held, test), strict=True):
        found = metrics(rows.scores_N, rows.positive_N, threshold)
        values = line.values()
        assert values["threshold"] == threshold
        assert values["tokens"] == len(rows.scores_N)
        assert values["positives"] == rows.positive_N.sum()
        for name in ("recall", "positive_rate"):
            assert values[name] == pytest.approx(getattr(found, name))
            interval = values[f"{name}_interval"]
            assert interval["low"] <= values[name] <= interval["high"]
    assert [line.measured_on for line in lines] == ["all held-out", "all held-out", "test"]
    assert [line.chosen_on for line in lines] == ["all held-out", "all held-out", "calibration"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "treshold"}, r"optimizing\.type 'treshold'; known: threshold, objective, skip"),
        ({"type": "objective", "metric": "accuracy"}, r"optimizing\.metric 'accuracy'; known: f1"),
        ({"type": "threshold", "min_recall": 1.2}, r"min_recall must be in \(0, 1\], got 1\.2"),
    ],
)
def test_what_r2r_cannot_choose_either_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimise(config, np.array([0.3, 0.4]), np.array([True, False]))


@pytest.mark.parametrize("kind", ["threshold", "objective", "skip"])
def test_without_a_positive_there_is_no_threshold(kind: str) -> None:
    with pytest.raises(DataError, match="no row is positive, so no threshold can be chosen"):
        optimise({"type": kind, "metric": "f1"}, np.array([0.3, 0.4]), np.array([False, False]))
