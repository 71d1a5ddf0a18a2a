"""What entropy alone gives at the same recall: has the network learned anything beyond it?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few
from crossroads.diagnosis.criteria import MATERIAL
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.reference import PUBLISHED_ENTROPY_RATE
from crossroads.diagnosis.result import Result
from crossroads.diagnosis.verdict import (
    Estimate,
    Status,
    Verdict,
    percent,
    percent_interval,
    points_text,
)
from crossroads.statistics import Interval

NAME = "no better than entropy"
_RECALLS = np.concatenate([np.linspace(0.05, 0.9, 18), np.linspace(0.91, 1.0, 10)])


def examine(evidence: Evidence) -> Verdict:  # noqa: PLR0911  a return per verdict
    """Compare the ranking with entropy's on the same rows, paired."""
    gauge, entropy = evidence.gauge, evidence.entropy
    if gauge is None or entropy is None:
        return _by_publication(evidence)
    few = too_few(gauge)
    if few is not None:
        return cannot_tell(NAME, few, "labels of more problems")
    plot = curve_plot(evidence, gauge, entropy)
    at = (
        f"At {percent(gauge.recall, 0)} recall entropy alone needs {percent_interval(entropy.rate)}"
    )
    if evidence.result is not None:
        return _result_against(evidence.result, entropy, at, plot)
    if not gauge.trained:
        return Verdict(
            NAME, Status.CANNOT_TELL, f"{at} of the tokens here; no network is at hand.",
            needs="a router's folder, or a run without --quick", plot=plot,
        )  # fmt: skip
    gain = entropy.less(gauge.score_n)
    text = (
        f"{at}, {gauge.name} {percent_interval(gauge.rate)}: the network gains {points_text(gain)} "
        "points."
    )
    facts = {"entropy": entropy.rate, "router": gauge.rate, "gain": gain}
    if gain.interval is not None and gain.interval.high < MATERIAL:
        return Verdict(NAME, Status.FOUND, text, -gain, plot=plot, facts=facts)
    if gain.interval is not None and gain.interval.low > 0:
        return Verdict(NAME, Status.RULED_OUT, text, plot=plot, facts=facts)
    return Verdict(
        NAME, Status.CANNOT_TELL, text, needs="labels of more problems", plot=plot, facts=facts
    )


def _result_against(result: Result, entropy: Gauge, at: str, plot: Plot) -> Verdict:
    """Compare a result with entropy on the rows at hand, which may be its own."""
    gain = Estimate(entropy.rate.value - result.positive_rate, error=entropy.rate.error)
    if entropy.rate.interval is not None:
        low, high = entropy.rate.interval.low, entropy.rate.interval.high
        interval = Interval(low - result.positive_rate, high - result.positive_rate)
        gain = Estimate(gain.value, interval, gain.error)
    text = (
        f"{at} on these rows, and the result {percent(result.positive_rate)}. If they are the "
        f"result's own, its network gains {points_text(gain)} points."
    )
    facts = {"entropy": entropy.rate, "gain": gain}
    if gain.interval is not None and gain.interval.high < MATERIAL:
        return Verdict(NAME, Status.FOUND, text, -gain, plot=plot, facts=facts)
    if gain.interval is not None and gain.interval.low > 0:
        return Verdict(NAME, Status.RULED_OUT, text, plot=plot, facts=facts)
    return Verdict(
        NAME, Status.CANNOT_TELL, text, needs="labels of more problems", plot=plot, facts=facts
    )


def _by_report(row: Mapping[str, Any]) -> Verdict:
    """Return what a run's own report says of its router and entropy on test."""
    found = row["difference"]
    loss = Estimate(found["value"], Interval(**found["interval"]))
    text = (
        f"By its own report the router needs {points_text(loss)} points more than entropy at "
        f"{percent(row['recall'], 0)} recall on test."
    )
    assert loss.interval is not None
    if loss.interval.low > -MATERIAL:
        return Verdict(NAME, Status.FOUND, text, loss)
    if loss.interval.high < 0:
        return Verdict(NAME, Status.RULED_OUT, text)
    return Verdict(NAME, Status.CANNOT_TELL, text, needs="labels of more problems")


def _by_publication(evidence: Evidence) -> Verdict:
    """Say what is known without labels: the run's own report, or R2R's published histogram."""
    row = None if evidence.run is None else evidence.run.over_entropy(evidence.recall)
    if row is not None:
        return _by_report(row)
    if evidence.result is None or abs(evidence.recall - 0.95) > 0.005:
        return cannot_tell(NAME, "No labels are at hand.", LABELS)
    low, high = PUBLISHED_ENTROPY_RATE
    return cannot_tell(
        NAME,
        f"On R2R's data entropy alone needs about {percent(low, 0)} to {percent(high, 0)} at 95 % "
        f"recall, by its published histogram; the result needs "
        f"{percent(evidence.result.positive_rate)}.",
        f"{LABELS} of the result",
    )


def curve_plot(evidence: Evidence, gauge: Gauge, entropy: Gauge) -> Plot:
    """Return positive_rate against recall, with the reference's point."""
    shown = [(gauge, "line")] if not gauge.trained else [(gauge, "line"), (entropy, "dashed")]
    series = [
        Series(
            ranked.name,
            (100 * _RECALLS).tolist(),
            (100 * ranked.ranking.curve(_RECALLS)).tolist(),
            "line" if style == "line" else "dashed",
        )
        for ranked, style in shown
    ]
    result, reference = evidence.result, evidence.reference
    if result is not None and result.final.recall:
        series.append(
            Series(
                "the result", [100 * result.final.recall], [100 * result.positive_rate], "points"
            )
        )
    if reference is not None:
        series.append(
            Series(
                "the reference", [100 * reference.recall], [100 * reference.positive_rate], "points"
            )
        )
    return Plot(
        "What each recall costs",
        "positive_rate at the exact threshold of each recall, on the rows at hand.",
        "recall (%)",
        "positive_rate (%)",
        tuple(series),
    )


CAUSES = (
    Cause(NAME, Kind.TRAINING, "does it rank better than entropy alone?", examine, adds=False),
)
