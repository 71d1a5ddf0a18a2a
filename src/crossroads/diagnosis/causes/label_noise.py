"""Labels that say divergent where everything else says the opposite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell
from crossroads.diagnosis.criteria import FEWEST_POSITIVES, FEWEST_PROBLEMS, STRONG
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.resampling import Clusters, WeightedRanking
from crossroads.diagnosis.tail import Tail, certainty_tail
from crossroads.diagnosis.tokens import Tokens
from crossroads.diagnosis.verdict import (
    Estimate,
    Status,
    Verdict,
    percent,
    percent_interval,
    points_text,
)
from crossroads.types import Label

NAME = "label noise"
CONTRADICTED = 0.001
"""Share of labels that contradict their own tokens, from which they are noise."""
_SEEN = 2.0
"""Strength of a floor that counts only together with the large model's own outputs."""
EXCESS = 0.02
"""Share of the positives beyond what certainty allows, from which they are noise."""


def examine(evidence: Evidence) -> Verdict:
    """Look for labels that contradict their tokens, and for positives that certainty forbids."""
    tokens, repeats = evidence.tokens, evidence.repeats
    if tokens is None or repeats is None:
        return _from_result(evidence)
    rows_N = tokens.judged_N & ~repeats.repeated_N  # a copy is no further evidence
    positive_n = tokens.positive(evidence.objective)[rows_N]
    clusters = Clusters(tokens.problem_N[rows_N], seed=0)
    if clusters.count < FEWEST_PROBLEMS or positive_n.sum() < FEWEST_POSITIVES:
        return cannot_tell(NAME, "There are too few positives.", "labels of more problems")
    wrong = _contradicting(tokens)
    tail = certainty_tail(tokens.doubt_N[rows_N], positive_n, clusters)
    points = _points(evidence, tail, rows_N, positive_n, clusters)
    likely = _likely(tokens.large_doubt_N[rows_N], positive_n, tail.certain_N)
    text = _text(tail, points, positive_n, wrong, likely)
    facts = {
        "contradicting": wrong,
        "excess_of_positives": tail.excess,
        "strength": tail.strength,
        "floor": tail.floor,
        "share_of_positives_where_certain": float(positive_n[tail.certain_N].mean()),
    }
    plot = _plot(tail)
    if wrong >= CONTRADICTED or (tail.excess.value >= EXCESS and _strong(tail, likely)):
        return Verdict(NAME, Status.FOUND, text, points, plot=plot, facts=facts)
    interval = tail.excess.interval
    if interval is not None and interval.high < EXCESS:
        return Verdict(NAME, Status.RULED_OUT, text, points, plot=plot, facts=facts)
    return Verdict(
        NAME, Status.CANNOT_TELL, text, points,
        needs="labels of more problems, or a second judge (`crossroads agreement`)",
        plot=plot, facts=facts,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Likely:
    """Share of positives that the large model finds at least half as likely as its own token.

    certain, others: where the small model is certain, and elsewhere. z: of their difference.
    """

    certain: float
    others: float
    z: float


def _likely(
    large_doubt_n: np.ndarray, positive_n: np.ndarray, certain_n: np.ndarray
) -> _Likely | None:
    """Return whether positives that certainty forbids are also those that the large model allows.

    None where the large model's outputs are not stored, or one side has no positive.
    """
    doubt_p, certain_p = large_doubt_n[positive_n], certain_n[positive_n]
    if not np.isfinite(doubt_p).all() or not certain_p.any() or certain_p.all():
        return None
    likely_p = doubt_p < np.log(2)
    here, there = float(likely_p[certain_p].mean()), float(likely_p[~certain_p].mean())
    share = float(likely_p.mean())
    counts = 1 / certain_p.sum() + 1 / (~certain_p).sum()
    error = float(np.sqrt(max(share * (1 - share), 1e-12) * counts))
    return _Likely(here, there, (here - there) / error)


def _strong(tail: Tail, likely: _Likely | None) -> bool:
    """Return whether the floor is beyond doubt, by itself or with the large model's word."""
    if tail.strength >= STRONG:
        return True
    return likely is not None and tail.strength >= _SEEN and likely.z >= STRONG


def _contradicting(tokens: Tokens) -> float:
    """Return the share of labels that disagree with their tokens being equal or not."""
    differs_N = tokens.proposed_N != tokens.real_N
    wrong_N = differs_N != (tokens.label_N != Label.IDENTICAL)
    return float(wrong_N[tokens.judged_N].mean())


def _points(
    evidence: Evidence,
    tail: Tail,
    rows_N: np.ndarray,
    positive_n: np.ndarray,
    clusters: Clusters,
) -> Estimate:
    """Return by how much the rate falls when the certain positives weigh what the line allows."""
    scored = evidence.scored
    assert scored is not None
    gauge = evidence.gauge
    usable_n = np.ones(int(rows_N.sum()), bool) if gauge is None else gauge.rows_N[rows_N]
    certain_n = tail.certain_N
    observed = float((certain_n & positive_n).sum())
    expected = float(tail.expected_N[certain_n].sum())
    weight_n = np.where(certain_n & positive_n, min(1.0, expected / max(observed, 1.0)), 1.0)
    ranking = WeightedRanking(scored.score_N[rows_N], positive_n)
    base_n = usable_n.astype(float)

    def fall(w: np.ndarray | None) -> float:
        own_n = base_n if w is None else base_n * w
        return ranking.rate_at_recall(evidence.recall, own_n) - ranking.rate_at_recall(
            evidence.recall, own_n * weight_n
        )

    return clusters.estimate(fall)


def _text(
    tail: Tail,
    points: Estimate,
    positive_n: np.ndarray,
    wrong: float,
    likely: _Likely | None,
) -> str:
    share = float((tail.certain_N & positive_n).sum() / positive_n.sum())
    text = (
        f"{percent(share)} of the positives stand in the half of the tokens where the small model "
        f"is most certain; {percent_interval(tail.excess)} of the positives are more than its "
        "certainty leads one to expect there. Weighed down to what it allows, they cost "
        f"{points_text(points)} points."
    )
    if wrong:
        text += f" {percent(wrong, 2)} of the labels contradict whether their two tokens are equal."
    if likely is not None:
        text += (
            f" The large model itself finds {percent(likely.certain, 0)} of them at least half as "
            f"likely as its own token, and {percent(likely.others, 0)} of the other positives."
        )
    return text


def _from_result(evidence: Evidence) -> Verdict:
    if evidence.result is None or evidence.result.final.recall is None:
        return cannot_tell(NAME, "No labels are at hand.", LABELS)
    most = arithmetic.most_noise(evidence.result.positive_rate, evidence.result.final.recall)
    return cannot_tell(
        NAME,
        f"At most {percent(most)} of the positives can be labelled at random; as few would suffice "
        "to explain all of the result.",
        LABELS,
    )


def _plot(tail: Tail) -> Plot:
    doubt = tail.doubt_B.tolist()
    return Plot(
        "Positives where the small model is certain",
        "Rate of positives by the small model's doubt. The line is fitted on the doubtful half and "
        "read in the certain one; a floor above it is what random labels look like.",
        "1 - probability of the small model's token",
        "positives (%)",
        (
            Series("observed", doubt, (100 * tail.rate_B).tolist(), "points"),
            Series("line", doubt, (100 * tail.line_B).tolist(), "dashed"),
        ),
        log_x=True,
    )


CAUSES = (Cause(NAME, Kind.DATA, "are there positives where the small model is certain?", examine),)
