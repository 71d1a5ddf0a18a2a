"""How threshold and epoch were chosen: grid, weighting, selection rule."""

from __future__ import annotations

import math

import numpy as np

from crossroads.diagnosis.causes.base import RUN, Cause, Kind, cannot_tell
from crossroads.diagnosis.criteria import MATERIAL
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.resampling import WeightedRanking
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent, points_text
from crossroads.routing.policy import sends_to_large
from crossroads.training.r2r.protocol import RECALL_GRID

GRID, WEIGHTING, SELECTION = "threshold grid", "loss weighting", "selection rule"
_EXCESS = 0.005  # recall above the target that a grid may leave without a word


def examine_grid(evidence: Evidence) -> Verdict:
    """Compare the exact threshold with R2R's grid."""
    gauge = evidence.gauge
    measured = None if gauge is None else _grid_points(evidence, gauge)
    if evidence.result is not None:
        return _grid_of_result(evidence, measured)
    if evidence.run is None:
        return cannot_tell(
            GRID,
            f"There is no run whose threshold came from a grid.{_measured_text(gauge, measured)}",
            "a run or its result",
        )
    used = evidence.run.settings.get("protocol") == "r2r"
    text = _measured_text(gauge, measured)
    if not used:
        return Verdict(
            GRID, Status.RULED_OUT, f"The run's threshold is exact, from its own scores.{text}",
            Estimate(0.0), facts={"would_cost": measured},
        )  # fmt: skip
    if measured is None:
        return cannot_tell(GRID, "The run's threshold came from R2R's grid.", RUN)
    status = Status.FOUND if measured >= MATERIAL else Status.RULED_OUT
    return Verdict(
        GRID, status, f"The run's threshold came from R2R's grid.{text}", Estimate(measured)
    )


def _grid_points(evidence: Evidence, gauge: Gauge) -> float | None:
    """Return what R2R's grid costs this ranking; None where no grid threshold has the recall."""
    score_n = gauge.score_n
    if not gauge.trained and evidence.data is not None:
        score_n = score_n / math.log(evidence.data.small.vocab_size)
    rates = []
    for threshold in RECALL_GRID:
        sent_n = sends_to_large(score_n, float(threshold))
        if (sent_n & gauge.positive_n).sum() >= gauge.recall * gauge.positives - 1e-9:
            rates.append(float(sent_n.mean()))
    return min(rates) - gauge.rate.value if rates else None


def _measured_text(gauge: Gauge | None, measured: float | None) -> str:
    if gauge is None:
        return ""
    if measured is None:
        return f" By {gauge.name} no threshold of R2R's grid has {percent(gauge.recall, 0)} recall."
    return f" For {gauge.name} R2R's grid would cost {points_text(Estimate(measured))} points."


def _grid_of_result(evidence: Evidence, measured: float | None) -> Verdict:
    """Bound what the grid costs by the recall that it leaves above the target."""
    result = evidence.result
    assert result is not None
    recall = result.final.recall
    target = evidence.recall if result.target is None else result.target
    if recall is None:
        return cannot_tell(GRID, "The result gives no recall.", "the result's recall")
    excess = recall - target
    text = (
        f"The result's recall is {percent(recall, 2)} where {percent(target, 0)} was asked for, so "
        f"an exact threshold could give up {percent(max(excess, 0.0), 2)} of recall and no more."
        f"{_measured_text(evidence.gauge, measured)}"
    )
    if -_EXCESS <= excess <= _EXCESS:
        return Verdict(GRID, Status.RULED_OUT, text, facts={"recall_above_target": excess})
    return cannot_tell(GRID, text, "the scores: the run's folder and data")


def examine_weighting(evidence: Evidence) -> Verdict:
    """Show that a weight on the positives moves the threshold and not the ranking."""
    text = (
        "A weight w on the positives turns the best probability p into w p / (w p + 1 - p): it "
        "moves scores and threshold and keeps their order, and positive_rate at a recall depends "
        "on the order alone."
    )
    gauge = evidence.gauge
    if gauge is None or not gauge.trained:
        return Verdict(WEIGHTING, Status.RULED_OUT, text, Estimate(0.0))
    score_n = gauge.score_n.astype(np.float64)
    rates = {}
    for weight in (1.0, 5.0, 20.0):
        odds = weight * score_n / (weight * score_n + 1 - score_n)
        rates[weight] = WeightedRanking(odds, gauge.positive_n).rate_at_recall(gauge.recall)
    shown = ", ".join(f"{percent(rate, 2)} with w = {weight:g}" for weight, rate in rates.items())
    return Verdict(
        WEIGHTING,
        Status.RULED_OUT,
        f"{text} Here: {shown}. What a weight does change is the loss, and with it the epoch that "
        "is kept where the loss selects: see the selection rule.",
        Estimate(rates[20.0] - rates[1.0]),
    )


def examine_selection(evidence: Evidence) -> Verdict:
    """Compare the epoch of the least loss with that of the least positive_rate."""
    if evidence.run is None or not evidence.run.history:
        return cannot_tell(
            SELECTION,
            "Which epoch another rule would have kept stands in the training's history, and that "
            "is not here.",
            "the router's folder with report.json",
        )
    history = evidence.run.history
    rates = [epoch["positive_rate"] for epoch in history]
    key = "calibration_loss" if "calibration_loss" in history[0] else "loss"
    by_loss = int(np.argmin([epoch[key] for epoch in history]))
    by_rate = int(np.argmin(rates))
    cost = rates[by_loss] - rates[by_rate]
    text = (
        f"On calibration the least loss is in epoch {history[by_loss]['epoch']} "
        f"({percent(rates[by_loss])}), the least positive_rate in epoch "
        f"{history[by_rate]['epoch']} ({percent(rates[by_rate])}): {points_text(Estimate(cost))} "
        "points, somewhat flattered, since the least of many is chosen on the rows that measure it."
    )
    if evidence.run.settings.get("selection") != "loss":
        return Verdict(
            SELECTION, Status.RULED_OUT,
            f"The run kept the epoch of the least positive_rate. {text}",
            Estimate(0.0), facts={"would_cost": cost},
        )  # fmt: skip
    status = Status.FOUND if cost >= MATERIAL else Status.RULED_OUT
    return Verdict(
        SELECTION, status, f"The run kept the epoch of the least loss. {text}", Estimate(cost)
    )


CAUSES = (
    Cause(GRID, Kind.PROTOCOL, "does a grid of thresholds miss the best one?", examine_grid),
    Cause(WEIGHTING, Kind.PROTOCOL, "does the weight on positives cost points?", examine_weighting),
    Cause(SELECTION, Kind.PROTOCOL, "was the wrong epoch kept?", examine_selection),
)
