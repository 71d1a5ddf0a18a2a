"""The diagnosis in plain language: what was found, what remains, what nobody can tell yet."""

from __future__ import annotations

import re

from crossroads.diagnosis.causes import population
from crossroads.diagnosis.criteria import GAP
from crossroads.diagnosis.diagnose import Diagnosis, gap_is_small
from crossroads.diagnosis.verdict import Status, Verdict, percent, points_text


def summary(diagnosis: Diagnosis) -> list[str]:
    """Return the paragraphs of the conclusion."""
    return [
        _headline(diagnosis),
        *_found(diagnosis),
        *_remaining(diagnosis),
        *_open(diagnosis),
    ]


def _headline(diagnosis: Diagnosis) -> str:
    subject, reference, gap = diagnosis.subject, diagnosis.reference, diagnosis.gap
    if subject is None:
        return "There is no positive_rate at hand that could be explained."
    number = (
        f"{subject.name} needs {percent(subject.rate.value)} at {percent(subject.recall)} recall"
    )
    if reference is None or gap is None:
        return f"{number[:1].upper()}{number[1:]}; no reference to compare with was given."
    if gap_is_small(gap):
        return (
            f"{number[:1].upper()}{number[1:]}, the reference {percent(reference.positive_rate)}: "
            f"less than {100 * GAP:.0f} points apart, nothing to explain."
        )
    more = "more" if gap.value > 0 else "less"
    return (
        f"{number[:1].upper()}{number[1:]}, {100 * abs(gap.value):.1f} points {more} than the "
        f"reference's {percent(reference.positive_rate)} at {percent(reference.recall)}."
    )


def _found(diagnosis: Diagnosis) -> list[str]:
    found = diagnosis.found()
    if not found:
        return ["No cause was found beyond doubt."]
    return [f"Found: {_with_points(verdict)}. {_first(verdict.evidence)}" for verdict in found]


def _first(evidence: str) -> str:
    """Return the first sentence."""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", evidence, maxsplit=1)[0]


def _with_points(verdict: Verdict) -> str:
    if verdict.points is None:
        return f"{verdict.name} (points not measured)"
    return f"{verdict.name} ({points_text(verdict.points)} points)"


def _remaining(diagnosis: Diagnosis) -> list[str]:
    gap = diagnosis.gap
    if gap is None or gap_is_small(gap):
        return []
    measured = diagnosis.adding
    if not measured and any(verdict.name == population.NAME for verdict in diagnosis.found()):
        return ["Two numbers that count different things differ without any other cause."]
    if not measured:
        return [f"All {100 * abs(gap.value):.1f} points remain unexplained."]
    rest = gap.value - diagnosis.explained
    alone = "" if len(measured) == 1 else " (as if causes added up, which they need not)"
    return [
        f"Of {100 * gap.value:+.1f} points, what was found comes to "
        f"{100 * diagnosis.explained:+.1f}{alone}; {100 * rest:+.1f} remain."
    ]


def _open(diagnosis: Diagnosis) -> list[str]:
    needs: dict[str, list[str]] = {}
    for verdict in diagnosis.verdicts:
        if verdict.status is Status.CANNOT_TELL and verdict.needs:
            needs.setdefault(verdict.needs, []).append(verdict.name)
    if not needs:
        return []
    parts = [f"{', '.join(names)}: {need}" for need, names in needs.items()]
    return ["Cannot be told without more. " + "; ".join(parts) + "."]
