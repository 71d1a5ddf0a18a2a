"""What a cause is, and the verdicts that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from crossroads.diagnosis.criteria import FEWEST_POSITIVES, FEWEST_PROBLEMS
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.verdict import Estimate, Status, Verdict

LABELS = "the labelled data (--data)"
RUN = "the router's folder (RUN) and its labelled data (--data)"


class Kind(StrEnum):
    """Where a cause would sit.

    POPULATION: two numbers that count different things. DATA: the labelled rows. TRAINING: the
    network could have been better on these rows. PROTOCOL: how threshold and epoch were chosen.
    CHANCE: nothing is wrong, the number is uncertain.
    """

    POPULATION = "population"
    DATA = "data"
    TRAINING = "training"
    PROTOCOL = "protocol"
    CHANCE = "chance"


@dataclass(frozen=True, slots=True)
class Cause:
    """A candidate cause: the question that it answers, and the function that does.

    adds: whether its points are a part of the difference to the reference. Those of a symptom (no
    better than entropy) or of chance are not: they would be counted twice, or explain anything.
    """

    name: str
    kind: Kind
    question: str
    examine: Callable[[Evidence], Verdict]
    adds: bool = True


def cannot_tell(name: str, why: str, needs: str) -> Verdict:
    """Return the verdict of a cause for which something is missing."""
    return Verdict(name, Status.CANNOT_TELL, why, needs=needs)


def too_few(gauge: Gauge | None) -> str | None:
    """Return in a sentence why the gauge's curve cannot be believed; None if it can."""
    if gauge is None:
        return "There is no positive among the rows that could be ranked."
    if gauge.clusters.count < FEWEST_PROBLEMS:
        return (
            f"{gauge.clusters.count} problems are too few for an interval ({FEWEST_PROBLEMS} are "
            "needed)."
        )
    if gauge.positives < FEWEST_POSITIVES:
        return f"{gauge.positives} positives are too few ({FEWEST_POSITIVES} are needed)."
    return None


def within(estimate: Estimate, bound: float) -> bool:
    """Return whether the whole interval lies within plus or minus `bound`."""
    interval = estimate.interval
    return interval is not None and -bound <= interval.low and interval.high <= bound
