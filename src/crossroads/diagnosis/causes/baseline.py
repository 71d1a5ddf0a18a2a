"""What entropy alone gives at the same recall: has the network learned anything beyond it?"""

from __future__ import annotations

import numpy as np

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few
from crossroads.diagnosis.criteria import MATERIAL
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.reference import PUBLISHED_ENTROPY_RATE
from crossroads.diagnosis.verdict import Status, Verdict, percent, percent_interval, points_text

NAME = "no better than entropy"
_RECALLS = np.concatenate([np.linspace(0.05, 0.9, 18), np.linspace(0.91, 1.0, 10)])


def examine(evidence: Evidence) -> Verdict:
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


def _by_publication(evidence: Evidence) -> Verdict:
    """Say what entropy needs on R2R's data, by its published histogram."""
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


CAUSES = (Cause(NAME, Kind.TRAINING, "does it rank better than entropy alone?", examine),)
