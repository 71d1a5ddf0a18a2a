"""One diagnosis: every cause's verdict on the evidence, and what they come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from crossroads.diagnosis.causes import CAUSES
from crossroads.diagnosis.causes.base import Kind
from crossroads.diagnosis.causes.live import NAME as LIVE
from crossroads.diagnosis.criteria import GAP
from crossroads.diagnosis.evidence import Evidence, Subject
from crossroads.diagnosis.populations import Population, populations
from crossroads.diagnosis.reference import Reference
from crossroads.diagnosis.statements import Statement, statements
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, plain

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found.

    subject: the number that was to be explained. gap: it less the reference's. statements: what
    follows from a bare result. notes: what was left out. verdicts: one per cause, in CAUSES' order.
    """

    subject: Subject | None
    reference: Reference | None
    gap: Estimate | None
    populations: tuple[Population, ...]
    statements: tuple[Statement, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    def verdict(self, name: str) -> Verdict:
        """Return one cause's verdict; KeyError for an unknown cause."""
        return {verdict.name: verdict for verdict in self.verdicts}[name]

    def found(self, *kinds: Kind) -> list[Verdict]:
        """Return the causes that were found, of the given kinds or of all, most points first."""
        chosen = [
            verdict
            for verdict in self.verdicts
            if verdict.status is Status.FOUND and (not kinds or CAUSES[verdict.name].kind in kinds)
        ]
        return sorted(chosen, key=lambda v: -abs(v.points.value) if v.points else 0.0)

    @property
    def explained(self) -> float:
        """Points of the causes that were found, as if they added up."""
        return sum(verdict.points.value for verdict in self.adding if verdict.points is not None)

    @property
    def adding(self) -> list[Verdict]:
        """The causes found whose points are a part of the gap, most points first.

        What live and offline differ by is a part of it where the reference is live.
        """
        live = self.reference is not None and self.reference.population == "live"
        return [
            verdict
            for verdict in self.found()
            if verdict.points is not None
            and (CAUSES[verdict.name].adds or (live and verdict.name == LIVE))
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": FORMAT,
            "subject": None if self.subject is None else plain(asdict(self.subject)),
            "reference": None if self.reference is None else plain(asdict(self.reference)),
            "gap": plain(self.gap),
            "explained": self.explained,
            "populations": [population.to_json() for population in self.populations],
            "statements": [asdict(statement) for statement in self.statements],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "notes": list(self.notes),
        }


def diagnose(evidence: Evidence) -> Diagnosis:
    """Ask every cause; nothing is written."""
    verdicts = [cause.examine(evidence) for cause in CAUSES.values()]
    stated: list[Statement] = []
    if evidence.result is not None and evidence.reference is not None:
        stated = statements(evidence.result, evidence.reference)
    return Diagnosis(
        subject=evidence.subject,
        reference=evidence.reference,
        gap=evidence.gap,
        populations=tuple(populations(evidence)),
        statements=tuple(stated),
        verdicts=tuple(verdicts),
        notes=tuple(_notes(evidence)),
    )


def _notes(evidence: Evidence) -> list[str]:
    notes = []
    data = evidence.data
    if data is not None and data.left_out:
        notes.append(
            f"{data.left_out} responses were left out: {len(data.tokens):,} positions are read at "
            "most, whole problems, drawn once and for all."
        )
    if (
        data is not None
        and evidence.wide is not None
        and len(evidence.wide.at_n) < len(data.tokens)
    ):
        notes.append(
            f"Hidden states were looked at on {len(evidence.wide.at_n):,} of {len(data.tokens):,} "
            "positions, whole responses evenly spread."
        )
    trainer = evidence.trainer
    if trainer is not None and trainer.left_out:
        notes.append(
            f"Whatever was trained here had {trainer.left_out} responses less, whole problems."
        )
    if trainer is not None and trainer.problem is not None:
        notes.append(f"Nothing could be trained: {trainer.problem}.")
    elif trainer is not None and evidence.run is not None and not trainer.as_run:
        notes.append(
            f"The run's own recipe is too large to repeat here, so {trainer.recipe} was trained "
            "instead wherever something was."
        )
    if evidence.run is not None and evidence.data is not None and _other_labels(evidence):
        notes.append(
            "The data are not those that the run was trained on: their train split may hold "
            "problems that are new to it, and their other splits problems that are not."
        )
    if evidence.options.quick:
        notes.append("Nothing was trained (--quick), so causes in the training are left open.")
    return notes


def _other_labels(evidence: Evidence) -> bool:
    """Return whether the run says that it was trained on other files than the data's."""
    assert evidence.run is not None
    assert evidence.data is not None
    trained = evidence.run.trained_on
    here = {frozenset(dataset.card["sha256"].items()) for dataset in evidence.data.datasets}
    return bool(trained) and not here <= trained


def gap_is_small(gap: Estimate) -> bool:
    """Return whether there is nothing to explain."""
    return abs(gap.value) < GAP
