"""Do the two numbers count the same thing?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossroads.dataset import UNJUDGED
from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.causes.base import Cause, Kind, cannot_tell
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.reference import Reference
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent
from crossroads.types import Label

NAME = "population"
_FACTOR = 1.5  # a base rate this near to another one is taken for it


def examine(evidence: Evidence) -> Verdict:
    """Compare what the two numbers count: live or offline, which tokens, which positives."""
    reference, subject = evidence.reference, evidence.subject
    if reference is None:
        return cannot_tell(NAME, "There is no number to compare with.", "--reference")
    others = denominators(evidence)
    text = _denominator_text(others)
    if reference.population == "live":
        return Verdict(
            NAME,
            Status.FOUND,
            f"The reference's {percent(reference.positive_rate)} is a share of generated tokens, "
            "on the path that both models wrote together; the number to explain is a share of the "
            "scored tokens of a dataset, on the large model's own path. Their difference says "
            f"nothing about a router. {text}",
            facts={"denominators": others},
        )
    counted = _filtered(evidence) or _mismatches_only(evidence, reference)
    if counted is not None:
        return counted
    if subject is not None and reference.population == "offline" and evidence.result is None:
        return Verdict(
            NAME,
            Status.RULED_OUT,
            "Both count the scored tokens of a dataset, without prompts, on the large model's own "
            f"path. {text}",
            facts={"denominators": others},
        )
    return Verdict(
        NAME,
        Status.CANNOT_TELL,
        f"Nobody said what the reference's {percent(reference.positive_rate)} counts: scored "
        f"tokens of a dataset, or generated tokens of live runs. {text}".strip(),
        needs="--reference population=offline or population=live, as its source says",
        facts={"denominators": others},
    )


def denominators(evidence: Evidence) -> Mapping[str, float]:
    """Return the gauge's number at its threshold, counted over other sets of tokens."""
    gauge, tokens = evidence.gauge, evidence.tokens
    if gauge is None or tokens is None:
        return {}
    sent = float(gauge.ranking.sent_at_recall(gauge.recall).sum())
    label_n = tokens.label_N[gauge.rows_N]
    rows = len(label_n)
    chosen_R = np.unique(tokens.response_N[gauge.rows_N])
    prompt = int(tokens.position_N[tokens.start_R[chosen_R]].sum())
    unjudged = int((np.isin(tokens.response_N, chosen_R) & (tokens.label_N == UNJUDGED)).sum())
    found = {"judged response tokens": sent / rows}
    if prompt:
        found["prompt tokens counted too, never sent"] = sent / (rows + prompt)
    if unjudged:
        found["unjudged tokens counted too, never sent"] = sent / (rows + unjudged)
    mismatch_n = label_n != Label.IDENTICAL
    if mismatch_n.any():
        sent_n = gauge.ranking.sent_at_recall(gauge.recall)
        found["mismatches only"] = float(sent_n[mismatch_n].mean())
    return found


def _denominator_text(others: Mapping[str, float]) -> str:
    if not others:
        return ""
    parts = [f"{percent(rate)} of {name}" for name, rate in others.items()]
    return f"One and the same threshold here sends {'; '.join(parts)}."


def _filtered(evidence: Evidence) -> Verdict | None:
    """Return `found` if the result's config thins out the rows that it measures."""
    result = evidence.result
    told = [] if result is None else [name for name in result.test_filters if name in _THINNING]
    if result is None or not told:
        return None
    return Verdict(
        NAME,
        Status.FOUND,
        f"The result's config filters its test rows by {' and '.join(told)}: "
        f"{'; '.join(_THINNING[name] for name in told)}. Its {percent(result.positive_rate)} "
        "counts what is left, not all tokens.",
        facts={"test_filters": result.test_filters},
    )


_THINNING = {
    "is_mismatch": "only mismatches are counted",
    "downsample_match_data": "as many matches are kept as there are mismatches or divergent tokens",
    "filter_data_id_critical": "sequences with many divergent tokens, or few tokens, are left out",
}
"""Filters of R2R that change what positive_rate counts."""


def _mismatches_only(evidence: Evidence, reference: Reference) -> Verdict | None:
    """Return `found` if the result's base rate is that of mismatches rather than of all tokens."""
    if evidence.result is None:
        return None
    base = arithmetic.base_rate(evidence.result.final)
    mismatch = reference.divergent + reference.neutral
    if base is None or not mismatch or not reference.divergent:
        return None
    among = reference.divergent / mismatch
    if not (among / _FACTOR <= base <= min(1.0, among * _FACTOR)):
        return None
    if reference.divergent / _FACTOR <= base <= reference.divergent * _FACTOR:
        return None
    rate = evidence.result.positive_rate
    best = mismatch * rate  # all tokens: the identical ones join, at best never sent
    return Verdict(
        NAME,
        Status.FOUND,
        f"{percent(base)} of the result's tokens are positives, which is the share among "
        f"mismatches ({percent(among)}) and not among all tokens "
        f"({percent(reference.divergent)}): its {percent(rate)} counts mismatches only. Over all "
        f"tokens the same threshold sends {percent(best)} and the identical ones that it sends.",
        Estimate(rate - best),
        facts={"base_rate": base},
    )


CAUSES = (
    Cause(
        NAME,
        Kind.POPULATION,
        "do the two numbers count the same tokens, on the same path?",
        examine,
        adds=False,
    ),
)
