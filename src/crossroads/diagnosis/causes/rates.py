"""Base rates and the mix of domains: how many positives there are, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossroads.dataset import UNJUDGED
from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few, within
from crossroads.diagnosis.criteria import (
    FEWEST_PROBLEMS,
    GAP,
    MATERIAL,
    RELATIVE_RATE,
    STRONG,
)
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.reference import Reference
from crossroads.diagnosis.resampling import Clusters
from crossroads.diagnosis.tail import binned, rates_apart
from crossroads.diagnosis.tokens import Tokens
from crossroads.diagnosis.verdict import (
    Estimate,
    Status,
    Verdict,
    percent,
    percent_interval,
)
from crossroads.types import Label, Split

BASE, DOMAINS = "base rates", "domain mix"
_DEFAULT = Reference(positive_rate=0.0)  # only its base rates, R2R's published ones, are used


def examine_base(evidence: Evidence) -> Verdict:
    """Compare the shares of divergent tokens and of mismatches with the reference's."""
    reference = evidence.reference or _DEFAULT
    if evidence.tokens is None:
        return _from_result(evidence, reference)
    tokens = evidence.tokens
    shares = {
        "divergent": (_share(tokens, tokens.positive("divergent")), reference.divergent),
        "mismatch": (
            _share(tokens, tokens.positive("mismatch")),
            reference.divergent + reference.neutral,
        ),
    }
    clusters = len(np.unique(tokens.problem_N))
    points = _reweighted(evidence.gauge, tokens, reference)
    said = ", ".join(
        f"{percent_interval(own)} {name} against {percent(other)}"
        for name, (own, other) in shares.items()
    )
    text = f"{said} ({reference.rates_source})."
    if points is not None:
        assert evidence.gauge is not None
        rate = evidence.gauge.rate.value
        text += (
            " With the reference's shares of identical, neutral and divergent tokens, each kind "
            f"scored as here, {percent(rate)} would be {percent(rate - points.value)}."
        )
    splits = _between_splits(tokens)
    facts = {name: {"here": own, "reference": other} for name, (own, other) in shares.items()}
    if splits:
        return Verdict(BASE, Status.FOUND, f"{splits} {text}", points, facts=facts)
    if clusters < FEWEST_PROBLEMS:
        return Verdict(
            BASE, Status.CANNOT_TELL, f"{text} {clusters} problems are too few.", points,
            needs="labels of more problems", facts=facts,
        )  # fmt: skip
    if any(_differs(own, other) for own, other in shares.values()):
        return Verdict(BASE, Status.FOUND, text, points, facts=facts)
    if points is not None and within(points, GAP):
        return Verdict(BASE, Status.RULED_OUT, text, points, facts=facts)
    return Verdict(
        BASE, Status.CANNOT_TELL, text, points, needs="labels of more problems", facts=facts
    )


def _share(tokens: Tokens, of_N: np.ndarray, among_N: np.ndarray | None = None) -> Estimate:
    """Return a share of the judged positions, with its interval over problems."""
    rows_N = tokens.judged_N if among_N is None else among_N
    clusters = Clusters(tokens.problem_N[rows_N], seed=0)
    parts = np.stack([of_N[rows_N], np.ones(int(rows_N.sum()), bool)])
    return clusters.estimate_of_sums(parts, lambda sums: float(sums[0] / max(sums[1], 1.0)))


def _differs(own: Estimate, other: float) -> bool:
    apart = Estimate(own.value - other, error=own.error)
    return abs(apart.z) >= STRONG and abs(apart.value) >= RELATIVE_RATE * max(other, 1e-9)


def _between_splits(tokens: Tokens) -> str:
    """Return in a sentence that one split has other base rates; empty if not seen.

    Compared as they are, and at equal doubt of the small model: problems differ in difficulty,
    and what is left after that is seen with far fewer of them.
    """
    rows_N = tokens.judged_N
    clusters = Clusters(tokens.problem_N[rows_N], seed=0)
    for objective in ("divergent", "mismatch"):
        of_N = tokens.positive(objective)
        parts = binned(tokens.doubt_N[rows_N], of_N[rows_N], clusters)
        for split in Split:
            own_N = tokens.in_split(split)
            own_C = clusters.sums(own_N[rows_N]) > 0
            if min(own_C.sum(), (~own_C).sum()) < FEWEST_PROBLEMS:
                continue
            own, rest = _share(tokens, of_N, own_N), _share(tokens, of_N, rows_N & ~own_N)
            error = float(np.hypot(own.error or 0.0, rest.error or 0.0))
            given = rates_apart(parts, own_C)
            if _differs(Estimate(own.value, error=error), rest.value) or (
                abs(given.z) >= STRONG and abs(given.value) >= RELATIVE_RATE
            ):
                return (
                    f"The {split} split differs: {percent_interval(own)} {objective} against "
                    f"{percent_interval(rest)} in the others, {1 + given.value:.2f} times as many "
                    "where the small model doubts as much."
                )
    return ""


def _reweighted(gauge: Gauge | None, tokens: Tokens, reference: Reference) -> Estimate | None:
    """Return by how much the rate falls if each label had the reference's share.

    The threshold stays where it is: recall looks at positives only, and all of one label weigh
    the same. Needs all three labels, and divergence as the positive class.
    """
    if gauge is None or too_few(gauge) is not None:
        return None
    label_n = tokens.label_N[gauge.rows_N].astype(np.int64)
    if len(np.unique(label_n)) < len(Label) or (label_n == UNJUDGED).any():
        return None
    wanted = np.array([reference.identical, reference.neutral, reference.divergent])

    def fall(weight_n: np.ndarray | None) -> float:
        ranking = gauge.ranking
        sent = ranking.sent_by_group(gauge.recall, label_n, len(Label), weight_n)
        return ranking.rate_at_recall(gauge.recall, weight_n) - float((wanted * sent).sum())

    return gauge.clusters.estimate(fall)


def _from_result(evidence: Evidence, reference: Reference) -> Verdict:
    """Judge by what a result's own metrics imply."""
    if evidence.result is None:
        return cannot_tell(BASE, "No labels are at hand to count.", LABELS)
    metrics = evidence.result.final
    base, broken = arithmetic.base_rate(metrics), arithmetic.contradiction(metrics)
    if broken is not None:
        return cannot_tell(BASE, f"The result contradicts itself: {broken}.", LABELS)
    if base is None or metrics.recall is None:
        return cannot_tell(
            BASE,
            "The result's positive_rate and recall leave its base rate open; see what follows from "
            "the numbers alone.",
            f"precision, f1 or accuracy of the result at the same threshold, or {LABELS}",
        )
    rate = evidence.result.positive_rate
    false = arithmetic.false_rate(rate, metrics.recall, base)
    other = arithmetic.positive_rate(reference.divergent, metrics.recall, false)
    text = (
        f"The result's metrics imply {percent(base)} positives against "
        f"{percent(reference.divergent)} ({reference.rates_source}); at the reference's base rate "
        f"the same ranking would have {percent(other)} instead of {percent(rate)}."
    )
    different = abs(base - reference.divergent) >= RELATIVE_RATE * reference.divergent
    return Verdict(
        BASE,
        Status.FOUND if different else Status.RULED_OUT,
        text,
        Estimate(rate - other),
        facts={"divergent": {"here": base, "reference": reference.divergent}},
    )


def examine_domains(evidence: Evidence) -> Verdict:
    """Weigh the domains as the reference does, where it says how."""
    gauge, tokens = evidence.gauge, evidence.tokens
    if tokens is None:
        return cannot_tell(DOMAINS, "No labels are at hand.", LABELS)
    few = too_few(gauge)
    if gauge is None or few is not None:
        return cannot_tell(DOMAINS, few or "", "labels of more problems")
    domain_n = tokens.domain_N[gauge.rows_N]
    shares = np.bincount(domain_n, minlength=len(tokens.domains)) / len(domain_n)
    said = _domain_text(gauge, domain_n, tokens.domains, shares)
    wanted = None if evidence.reference is None else evidence.reference.domains
    if wanted is None:
        return cannot_tell(DOMAINS, said, "--reference domain.NAME=SHARE for the reference's mix")
    missing = sorted(set(wanted) - set(tokens.domains))
    if missing:
        return cannot_tell(
            DOMAINS, f"{said} The data have nothing of {', '.join(missing)}.", "labels of these"
        )
    return _reweighted_domains(gauge, tokens, shares, wanted, said)


def _domain_text(
    gauge: Gauge, domain_n: np.ndarray, names: tuple[str, ...], shares: np.ndarray
) -> str:
    if len(names) == 1:
        return f"All tokens are of one domain, {names[0]}."
    parts = []
    for number, name in enumerate(names):
        rate = gauge.ranking.rate_at_recall(gauge.recall, (domain_n == number).astype(float))
        shown = "has no positive" if np.isnan(rate) else f"alone needs {percent(rate)}"
        parts.append(f"{name} ({percent(shares[number], 0)} of the tokens) {shown}")
    return f"At {percent(gauge.recall, 0)} recall {'; '.join(parts)}."


def _reweighted_domains(
    gauge: Gauge, tokens: Tokens, shares: np.ndarray, wanted: Mapping[str, float], said: str
) -> Verdict:
    target = np.array([wanted.get(name, 0.0) for name in tokens.domains])
    per_domain = np.divide(target, shares, out=np.zeros(len(target)), where=shares > 0)
    rate, points = gauge.rate_without(per_domain[tokens.domain_N])
    text = f"{said} With the reference's mix the rate is {percent(rate)}."
    if abs(points.z) >= STRONG and abs(points.value) >= MATERIAL:
        return Verdict(DOMAINS, Status.FOUND, text, points)
    if within(points, GAP):
        return Verdict(DOMAINS, Status.RULED_OUT, text, points)
    return Verdict(DOMAINS, Status.CANNOT_TELL, text, points, needs="labels of more problems")


CAUSES = (
    Cause(
        BASE, Kind.DATA, "are there as many divergent tokens and mismatches as there?", examine_base
    ),
    Cause(
        DOMAINS, Kind.POPULATION, "are the tokens of the same kinds of problems?", examine_domains
    ),
)
