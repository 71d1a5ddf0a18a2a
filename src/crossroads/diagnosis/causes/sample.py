"""Chance, and the other end of the trade: how sure the number is, what recall the rate buys."""

from __future__ import annotations

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few
from crossroads.diagnosis.criteria import GAP
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.verdict import Status, Verdict, percent, percent_interval

SAMPLE, RECALL = "small sample", "another recall"
_CLEAR = 3.0  # standard errors of the gap beyond which chance is ruled out


def examine_sample(evidence: Evidence) -> Verdict:  # noqa: PLR0911  a return per verdict
    """Ask whether the reference lies within the number's own interval."""
    gauge = evidence.gauge
    if gauge is None or evidence.tokens is None:
        return cannot_tell(SAMPLE, "Without the labels the number has no interval.", LABELS)
    few = too_few(gauge)
    text = (
        f"{gauge.name.capitalize()} needs {percent_interval(gauge.rate)} at "
        f"{percent(gauge.recall, 0)} recall, by {gauge.positives} positives in "
        f"{gauge.clusters.count} problems."
    )
    if few is not None:
        return cannot_tell(SAMPLE, f"{text} {few}", "labels of more problems")
    if evidence.reference is None:
        return cannot_tell(SAMPLE, text, "--reference")
    other = evidence.reference.positive_rate
    interval, error = gauge.rate.interval, gauge.rate.error
    apart = gauge.rate.value - other
    if interval is None or error is None:
        return cannot_tell(SAMPLE, text, "labels of more problems")
    if abs(apart) < GAP:
        return Verdict(
            SAMPLE, Status.RULED_OUT,
            f"{text} That is the reference's {percent(other)} within {100 * GAP:.0f} points: there "
            "is nothing to explain.",
        )  # fmt: skip
    if interval.low <= other <= interval.high:
        return Verdict(
            SAMPLE, Status.FOUND, f"{text} The reference's {percent(other)} lies within that."
        )
    if abs(apart) > _CLEAR * error:
        return Verdict(
            SAMPLE, Status.RULED_OUT, f"{text} The reference's {percent(other)} lies outside."
        )
    return cannot_tell(
        SAMPLE, f"{text} The reference's {percent(other)} is not far outside.",
        "labels of more problems",
    )  # fmt: skip


def examine_recall(evidence: Evidence) -> Verdict:
    """Ask what recall the reference's positive_rate buys here."""
    reference, gauge = evidence.reference, evidence.gauge
    if reference is None:
        return cannot_tell(RECALL, "There is no number to compare with.", "--reference")
    if gauge is None or too_few(gauge) is not None:
        return cannot_tell(RECALL, "There is no curve to read it from.", LABELS)
    bought = gauge.recall_at(reference.positive_rate)
    text = (
        f"Sending {percent(reference.positive_rate)} of the tokens buys {percent_interval(bought)} "
        f"recall by {gauge.name}{_entropy_text(evidence.entropy, gauge, reference.positive_rate)}."
    )
    facts = {"recall": bought}
    if abs(gauge.rate.value - reference.positive_rate) < GAP:
        return Verdict(RECALL, Status.RULED_OUT, text, facts=facts)
    return Verdict(
        RECALL,
        Status.CANNOT_TELL,
        f"{text} If the reference's recall is of that size in truth, or of another class of "
        "tokens, there is no difference; its source must say.",
        needs="how the reference's recall was measured",
        facts=facts,
    )


def _entropy_text(entropy: Gauge | None, gauge: Gauge, rate: float) -> str:
    if entropy is None or not gauge.trained:
        return ""
    return f", {percent(entropy.recall_at(rate).value)} by entropy"


CAUSES = (
    Cause(SAMPLE, Kind.CHANCE, "is the number too uncertain to differ?", examine_sample, False),
    Cause(
        RECALL,
        Kind.POPULATION,
        "what recall does the reference's rate buy here?",
        examine_recall,
        adds=False,
    ),
)
