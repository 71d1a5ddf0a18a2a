"""R2R's way to choose a threshold and to measure it, beside ours, on scores and labels alone.

R2R chooses among the points of a grid, on the same rows that stopped its training, and reports on
those rows again. Ours takes the threshold from the calibration scores themselves and measures it on
rows that nothing was chosen on. Shapes: N scored rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.routing.policy import sends_to_large
from crossroads.statistics import Interval
from crossroads.training.report import measure
from crossroads.training.threshold import threshold_for_recall

START = 0.5
"""The threshold of R2R's `pre_opt_metrics`, and of `skip`."""
RECALL_GRID = np.linspace(0.01, 0.99, 100)
OBJECTIVE_GRID = np.linspace(0.1, 0.9, 9)
DEFAULT_RECALL = 0.9
"""Where `optimizing` of type threshold says nothing."""
TYPES = ("threshold", "objective", "skip")
METRICS = ("f1", "recall", "precision")
"""Of type objective; R2R fails on its fourth, accuracy."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of some rows, which of them are positive (bool), and their problems (from 0 on)."""

    scores_N: np.ndarray
    positive_N: np.ndarray
    problem_N: np.ndarray

    def and_also(self, other: Scored) -> Scored:
        """Return both, whose problems are others."""
        first = int(self.problem_N.max(initial=-1)) + 1
        return Scored(
            np.concatenate([self.scores_N, other.scores_N]),
            np.concatenate([self.positive_N, other.positive_N]),
            np.concatenate([self.problem_N, other.problem_N + first]),
        )


@dataclass(frozen=True, slots=True)
class Metrics:
    """R2R's five numbers, all of them shares; precision is nan where nothing is sent."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    positive_rate: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold of R2R's; `met` is whether it does what it was chosen for."""

    threshold: float
    met: bool


@dataclass(frozen=True, slots=True)
class Optimised:
    """R2R's choice, what it measures there, and at 0.5 before it chose (None with `skip`)."""

    choice: Choice
    final: Metrics
    before: Metrics | None


@dataclass(frozen=True, slots=True)
class Line:
    """One way to choose a threshold, and what it does, with 95 % intervals over problems."""

    protocol: str
    chosen_on: str
    measured_on: str
    threshold: float
    recall: float
    recall_interval: Interval
    positive_rate: float
    positive_rate_interval: Interval
    positives: int
    tokens: int

    def values(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return asdict(self)


def metrics(scores_N: np.ndarray, positive_N: np.ndarray, threshold: float) -> Metrics:
    """Return R2R's metrics of a threshold; positive_rate is the share of all rows that are sent.

    precision and recall are nan where their denominator is 0, as they are in R2R.
    """
    sent_N, positive_N = sends_to_large(scores_N, threshold), positive_N.astype(bool)
    total, sent, positives = len(sent_N), int(sent_N.sum()), int(positive_N.sum())
    caught = int((sent_N & positive_N).sum())
    right = total - sent - positives + 2 * caught
    return Metrics(
        accuracy=_share(right, total),
        precision=_share(caught, sent),
        recall=_share(caught, positives),
        f1=_share(2 * caught, sent + positives),
        positive_rate=_share(sent, total),
    )


def optimise(
    optimizing: Mapping[str, Any], scores_N: np.ndarray, positive_N: np.ndarray
) -> Optimised:
    """Return what R2R's script chooses for its config's `optimizing`, on these rows, and reports.

    threshold: the lowest of the points of RECALL_GRID whose recall is at least min_recall and whose
    positive_rate is least; a point that sends everything is never taken. Where none is left, the
    lowest point of the highest recall, not `met`. objective: the lowest point of OBJECTIVE_GRID
    with the highest metric, 0.5 where it is 0 everywhere. skip: 0.5.

    Raises:
        ConfigError: an unknown type or metric, or a recall out of range. DataError: no positives.
    """
    if not positive_N.any():
        raise DataError("no row is positive, so no threshold can be chosen; give more data")
    kind = optimizing["type"]
    if kind == "skip":
        choice = Choice(START, met=True)
    elif kind == "threshold":
        choice = _by_recall(scores_N, positive_N, optimizing.get("min_recall", DEFAULT_RECALL))
    elif kind == "objective":
        choice = _by_objective(scores_N, positive_N, str(optimizing.get("metric")))
    else:
        raise ConfigError(f"optimizing.type {kind!r}; known: {', '.join(TYPES)}")
    before = None if kind == "skip" else metrics(scores_N, positive_N, START)
    return Optimised(choice, metrics(scores_N, positive_N, choice.threshold), before)


def _by_recall(scores_N: np.ndarray, positive_N: np.ndarray, min_recall: float) -> Choice:
    if not 0 < min_recall <= 1:
        raise ConfigError(f"optimizing.min_recall must be in (0, 1], got {min_recall}")
    points = [(float(t), metrics(scores_N, positive_N, float(t))) for t in RECALL_GRID]
    # R2R begins at a rate of 100 % and wants a lower one, so a point at 100 % is never taken.
    usable = [p for p in points if p[1].recall >= min_recall and p[1].positive_rate < 1]
    if usable:
        return Choice(min(usable, key=lambda p: p[1].positive_rate)[0], met=True)
    return Choice(max(points, key=lambda p: p[1].recall)[0], met=False)


def _by_objective(scores_N: np.ndarray, positive_N: np.ndarray, metric: str) -> Choice:
    if metric not in METRICS:
        raise ConfigError(f"optimizing.metric {metric!r}; known: {', '.join(METRICS)}")
    best, chosen = 0.0, START
    for threshold in OBJECTIVE_GRID:
        value = getattr(metrics(scores_N, positive_N, float(threshold)), metric)
        if value > best:  # nan, the precision of nothing, is never better
            best, chosen = value, float(threshold)
    return Choice(chosen, met=True)


def stop_epoch(losses: Sequence[float], patience: int) -> tuple[int, int]:
    """Return R2R's best epoch and its last one, both from 1, for the validation losses of epochs.

    An epoch is better if its loss is strictly less than the least before; `patience` epochs in a
    row that are not better end the training.
    """
    best, least, waited = 1, math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        if loss < least:
            best, least, waited = epoch, loss, 0
            continue
        waited += 1
        if waited >= patience:
            return best, epoch
    return best, len(losses)


def side_by_side(
    optimizing: Mapping[str, Any],
    held: Scored,
    calibration: Scored,
    test: Scored,
    min_recall: float,
    seed: int,
) -> list[Line]:
    """Return three lines of one trained network: R2R's, an exact threshold on its rows, and ours.

    R2R chooses and measures on `held`. The second line does, too, and shows what its grid costs.
    Ours chooses on `calibration`, for `min_recall`, and measures on `test`.
    """
    grid = optimise(optimizing, held.scores_N, held.positive_N).choice.threshold
    exact = threshold_for_recall(held.scores_N, held.positive_N, min_recall)
    ours = threshold_for_recall(calibration.scores_N, calibration.positive_N, min_recall)
    return [
        _line(("r2r", "all held-out", "all held-out"), grid, held, seed),
        _line(("r2r, exact threshold", "all held-out", "all held-out"), exact, held, seed),
        _line(("default", "calibration", "test"), ours, test, seed),
    ]


def _line(names: tuple[str, str, str], threshold: float, on: Scored, seed: int) -> Line:
    found = measure(on.scores_N, on.positive_N, on.problem_N, threshold, seed)
    return Line(
        *names,
        threshold=float(threshold),
        recall=found.point.recall,
        recall_interval=found.recall,
        positive_rate=found.point.positive_rate,
        positive_rate_interval=found.positive_rate,
        positives=found.point.positives,
        tokens=found.point.tokens,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
