"""Real generations against the dataset: the router on the path that both models wrote."""

from __future__ import annotations

import numpy as np

from crossroads.diagnosis.causes.base import Cause, Kind, cannot_tell, too_few, within
from crossroads.diagnosis.criteria import FEWEST_PROBLEMS, GAP, MATERIAL, STRONG
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.live import Live
from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.resampling import Clusters
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent, percent_interval
from crossroads.routing.policy import sends_to_large

NAME = "live against offline"
_PLOTTED = np.linspace(0.0, 1.0, 101)


def examine(evidence: Evidence) -> Verdict:
    """Compare what one threshold sends live with what it sends in the data."""
    live, gauge = evidence.live, evidence.gauge
    if live is None:
        return cannot_tell(
            NAME, "No real generations are at hand.", "traces of the router (--live)"
        )
    if evidence.run is None or gauge is None:
        return cannot_tell(
            NAME,
            f"{len(live.traces)} traces, but no run and data to compare their scores with.",
            "the router's folder (RUN) and its labelled data (--data)",
        )
    own = evidence.run.loaded.card.threshold
    at = own if own in live.thresholds or not live.thresholds else live.thresholds[0]
    if own not in live.thresholds and len(live.thresholds) != 1:
        shown = ", ".join(f"{threshold:.4f}" for threshold in live.thresholds) or "unknown"
        return cannot_tell(
            NAME,
            f"The traces ran at thresholds {shown}, none of which is the run's {own:.4f}: they may "
            "be of another router.",
            "traces of this router at one threshold",
        )
    return _compared(live.at_threshold(at), gauge, at, own)


def _compared(live: Live, gauge: Gauge, threshold: float, own: float) -> Verdict:
    online = _share(sends_to_large(live.score_N, threshold), live.trace_N)
    offline = _share(sends_to_large(gauge.score_n, threshold), gauge.problem_n)
    error = float(np.hypot(online.error or 0.0, offline.error or 0.0))
    value = offline.value - online.value
    drawn = np.array([value - 1.96 * error, value + 1.96 * error])
    points = Estimate(value, Estimate.of(value, drawn).interval, error)
    large = live.usage.large_fraction
    text = (
        f"At threshold {threshold:.4f} the router sends {percent_interval(online)} of the tokens "
        f"that it scored in {len(live.traces)} real generations, and "
        f"{percent_interval(offline)} of the data's. The large model wrote {percent(large)} of the "
        "generated tokens (large_fraction). The paths differ: a real one holds the small model's "
        "own tokens."
    )
    if threshold != own:
        text += f" The run's own threshold is {own:.4f}: are the traces of this router?"
    facts = {"live": online, "offline": offline, "large_fraction": large, "threshold": threshold}
    plot = _plot(live, gauge)
    few = too_few(gauge)
    if few is not None or len(live.traces) < FEWEST_PROBLEMS:
        return Verdict(
            NAME, Status.CANNOT_TELL, f"{text} {few or ''}".strip(), points,
            needs="more traces or labelled problems", plot=plot, facts=facts,
        )  # fmt: skip
    if abs(points.z) >= STRONG and abs(points.value) >= MATERIAL:
        return Verdict(NAME, Status.FOUND, text, points, plot=plot, facts=facts)
    if within(points, GAP):
        return Verdict(NAME, Status.RULED_OUT, text, points, plot=plot, facts=facts)
    return Verdict(
        NAME, Status.CANNOT_TELL, text, points, needs="more traces", plot=plot, facts=facts
    )


def _share(sent_n: np.ndarray, cluster_n: np.ndarray) -> Estimate:
    parts = np.stack([sent_n, np.ones(len(sent_n), bool)])
    return Clusters(cluster_n, seed=0).estimate_of_sums(
        parts, lambda sums: float(sums[0] / max(sums[1], 1.0))
    )


def _plot(live: Live, gauge: Gauge) -> Plot:
    thresholds = _PLOTTED.tolist()

    def sent(score_n: np.ndarray) -> list[float]:
        return [100 * float(sends_to_large(score_n, t).mean()) for t in thresholds]

    return Plot(
        "The same thresholds, live and in the data",
        "Share of scored tokens that each threshold sends to the large model.",
        "threshold",
        "tokens sent (%)",
        (
            Series("real generations", thresholds, sent(live.score_N)),
            Series("labelled data", thresholds, sent(gauge.score_n), "dashed"),
        ),
    )


CAUSES = (
    Cause(
        NAME,
        Kind.POPULATION,
        "does the router send as much in real generations as in the data?",
        examine,
        adds=False,
    ),
)
