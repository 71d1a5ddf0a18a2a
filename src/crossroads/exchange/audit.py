"""The alignment audit: does every label stand beside the outputs and tokens it is about?

A label that slipped by one row trains a router without any error, on noise. Every law of the
format that a reader can check is checked on every row, and violations are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossroads.artifacts import load_tensors
from crossroads.dataset import UNJUDGED, Comparison, LabelledDataset
from crossroads.exchange.dataset_laws import DATASET_LAWS, dataset_findings, length_finding
from crossroads.exchange.findings import Finding
from crossroads.exchange.r2r_columns import NOT_JUDGED
from crossroads.exchange.r2r_laws import R2R_LAWS, r2r_findings
from crossroads.exchange.r2r_source import R2RSource, open_r2r
from crossroads.types import Progress, SilentProgress


@dataclass(frozen=True, slots=True)
class Example:
    """One violation: where it is, what stands there, and what should.

    sequence: its data_id, or a dataset's response. token_id: counts in the sequence, or row.
    """

    sequence: str
    token_id: int
    got: str
    expected: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check over the whole data."""

    name: str
    law: str
    checked: int
    violations: int
    first: Example | None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found. rows: rows of R2R's format, or positions of a dataset."""

    source: Path
    sequences: int
    rows: int
    unjudged: int
    checks: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no law is violated."""
        return not any(check.violations for check in self.checks)

    @property
    def summary(self) -> str:
        """The first violated law with its count and first example, or that all hold."""
        for check in self.checks:
            if check.first is not None:
                where = f"sequence {check.first.sequence}, token_id {check.first.token_id}"
                return (
                    f"{self.source} fails the check {check.name!r} ({check.law}) in "
                    f"{check.violations} of {check.checked} rows, first at {where}: "
                    f"got {check.first.got}, expected {check.first.expected}"
                )
        return f"{self.source} keeps every law"


@dataclass(slots=True)
class _Count:
    checked: int = 0
    violations: int = 0
    first: Example | None = None

    def add(self, finding: Finding, sequence: str, token_id: Callable[[int], int]) -> None:
        self.checked += finding.checked
        wrong = np.flatnonzero(finding.wrong_T)
        self.violations += len(wrong)
        if len(wrong) and self.first is None:
            row = int(wrong[0])
            got, expected = str(finding.got(row)), str(finding.expected(row))
            self.first = Example(sequence, token_id(row), got, expected)


def audit_r2r(source: Path | R2RSource, progress: Progress | None = None) -> AuditReport:
    """Check every row of R2R's format at `source`; a sequence is in memory at a time.

    Raises:
        DataError: nothing to read there, a missing column or one of another type.
    """
    opened = open_r2r(source) if isinstance(source, Path) else source
    progress = progress or SilentProgress()
    counts = {name: _Count() for name in R2R_LAWS}
    sequences = unjudged = 0
    progress.start("audit", opened.rows, "rows")
    for rows in opened.sequences():
        for name, finding in r2r_findings(rows).items():
            counts[name].add(finding, rows.name, lambda row, of=rows: int(of.token_T[row]))  # type: ignore[misc]
        sequences += 1
        unjudged += int((rows.divergent_T == NOT_JUDGED).sum())
        progress.advance(len(rows))
    progress.finish()
    return AuditReport(opened.path, sequences, opened.rows, unjudged, _results(R2R_LAWS, counts))


def _results(laws: Mapping[str, str], counts: Mapping[str, _Count]) -> tuple[CheckResult, ...]:
    return tuple(
        CheckResult(name, law, counts[name].checked, counts[name].violations, counts[name].first)
        for name, law in laws.items()
    )


def audit_dataset(dataset: LabelledDataset, progress: Progress | None = None) -> AuditReport:
    """Check every position of a labelled dataset; a response is in memory at a time.

    Raises:
        DataError: a file is damaged or lacks a column.
    """
    progress = progress or SilentProgress()
    responses, labels = dataset.responses, dataset.labels()
    known = frozenset(dataset.embeddings().ids_M.tolist())
    counts = {name: _Count() for name in DATASET_LAWS}
    start = 0
    progress.start("audit", sum(row.positions for row in responses), "positions")
    for row in responses:
        path = dataset.folder / row.file
        comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
        length = length_finding(row, comparison, labels, start)
        found = {"length": length}
        if not length.wrong_T.any():
            found |= dataset_findings(comparison, labels.of(row), known)
        for name, finding in found.items():
            counts[name].add(finding, f"{row.problem_id}#{row.sample}", _position_of(comparison))
        start += row.positions
        progress.advance(row.positions)
    progress.finish()
    unjudged = int((labels.label_N == UNJUDGED).sum())
    results = _results(DATASET_LAWS, counts)
    return AuditReport(dataset.folder, len(responses), start, unjudged, results)


def _position_of(comparison: Comparison) -> Callable[[int], int]:
    """Return how a row of a finding is named: by its index in the model's row."""

    def position(row: int) -> int:
        return int(comparison.position_N[row]) if row < len(comparison.position_N) else row

    return position
