"""What a router is worth on a split, beside the heuristics, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from crossroads.dataset import LabelledDataset, Positions
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.base import Router
from crossroads.statistics import Interval, ratio_interval
from crossroads.training.fit import score_positions, targets
from crossroads.training.threshold import OperatingPoint, operating_point, threshold_for_recall
from crossroads.types import Split

RECALLS = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Measured:
    """An operating point with 95 % intervals; whole problems are resampled."""

    point: OperatingPoint
    recall: Interval
    positive_rate: Interval


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One router at one recall target: chosen on calibration, measured there and on test."""

    router: str
    target_recall: float
    calibration: Measured
    test: Measured


def measure(
    scores: np.ndarray, divergent: np.ndarray, problem: np.ndarray, threshold: float, seed: int
) -> Measured:
    """Return what a threshold does, with intervals clustered by problem."""
    sent = sends_to_large(scores, threshold)
    count = int(problem.max()) + 1

    def per_problem(values: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.bincount(problem, weights=values.astype(float), minlength=count)
        return sums

    return Measured(
        point=operating_point(scores, divergent, threshold),
        recall=ratio_interval(per_problem(sent & divergent), per_problem(divergent), seed=seed),
        positive_rate=ratio_interval(
            per_problem(sent), per_problem(np.ones(len(scores))), seed=seed
        ),
    )


def calibrate(
    router: Router, calibration: Positions, target_recall: float, objective: str, seed: int
) -> Measured:
    """Return the highest threshold that meets the recall target on the calibration split."""
    scores = score_positions(router, calibration)
    positive = targets(calibration, objective).numpy()
    threshold = threshold_for_recall(scores, positive, target_recall)
    return measure(scores, positive, calibration.problem_N.numpy(), threshold, seed)


def report(
    routers: Sequence[Router],
    dataset: LabelledDataset,
    objective: str,
    recalls: Sequence[float],
    seed: int,
) -> list[ReportRow]:
    """Return each router at each recall target. The one place that reads the test split."""
    calibration, test = dataset.split(Split.CALIBRATION), dataset.split(Split.TEST)
    positive = targets(test, objective).numpy()
    rows = []
    for router in routers:
        scores = score_positions(router, test)
        for recall in recalls:
            chosen = calibrate(router, calibration, recall, objective, seed)
            threshold = chosen.point.threshold
            on_test = measure(scores, positive, test.problem_N.numpy(), threshold, seed)
            rows.append(ReportRow(router.name, recall, chosen, on_test))
    return rows


def report_json(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(row) for row in rows]


def report_table(rows: Sequence[Mapping[str, Any]], objective: str, target_recall: float) -> Table:
    """Return the rows (as `report_json` gives them) at one recall target, in percent."""
    chosen = [row for row in rows if row["target_recall"] == target_recall]
    positives = chosen[0]["test"]["point"]["positives"]
    table = Table(
        title=f"routers calibrated to {100 * target_recall:g} % recall of {objective} tokens, "
        f"on the test split ({positives} of them; [95 % intervals])",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("router")
    for column in ("threshold", "recall %", "positive_rate %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in chosen:
        test = row["test"]
        table.add_row(
            row["router"],
            f"{test['point']['threshold']:.4f}",
            _percent(test["point"]["recall"], test["recall"]),
            _percent(test["point"]["positive_rate"], test["positive_rate"]),
        )
    return table


def recalls_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return each router's recall and positive_rate on test at every recall target, in percent."""
    recalls = sorted({row["target_recall"] for row in rows})
    table = Table(
        title="recall / positive_rate on the test split, by the recall asked of calibration",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("router")
    for target in recalls:
        table.add_column(f"{100 * target:g} %", justify="right", no_wrap=True)
    for name in dict.fromkeys(row["router"] for row in rows):
        points = {
            row["target_recall"]: row["test"]["point"] for row in rows if row["router"] == name
        }
        table.add_row(
            name,
            *(
                f"{100 * points[t]['recall']:.1f} / {100 * points[t]['positive_rate']:.1f}"
                for t in recalls
            ),
        )
    return table


def _percent(value: float, interval: Mapping[str, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
