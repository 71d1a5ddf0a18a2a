"""A diagnosis on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossroads.diagnosis.causes import CAUSES
from crossroads.diagnosis.diagnose import Diagnosis
from crossroads.diagnosis.summary import summary
from crossroads.diagnosis.verdict import Status, points_text

_COLOURS = {Status.FOUND: "bold red", Status.RULED_OUT: "green", Status.CANNOT_TELL: "yellow"}


def terminal(diagnosis: Diagnosis) -> Group:
    """Return everything that the terminal shows, in order."""
    parts = [
        _numbers(diagnosis),
        _causes(diagnosis),
        *_statements(diagnosis),
        *_notes(diagnosis),
        Text("In short", style="bold"),
        *(Padding(Text(paragraph), (0, 0, 0, 2)) for paragraph in summary(diagnosis)),
    ]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _numbers(diagnosis: Diagnosis) -> Table:
    table = _table("the numbers, and what each counts", "number", "value", "recall", "counts", "of")
    for row in diagnosis.populations:
        table.add_row(*map(Text, (row.what, row.value, row.recall, row.counts, row.tokens)))
    return table


def _causes(diagnosis: Diagnosis) -> Table:
    table = _table("candidate causes", "cause", "verdict", "points", "evidence")
    table.columns[2].no_wrap = True
    for verdict in diagnosis.verdicts:
        evidence = Text(verdict.evidence)
        if verdict.needs and verdict.status is Status.CANNOT_TELL:
            evidence.append(f" Needs: {verdict.needs}.", style="dim")
        table.add_row(
            Text(f"{verdict.name}\n{CAUSES[verdict.name].kind}"),
            Text(verdict.status.value, style=_COLOURS[verdict.status]),
            Text(points_text(verdict.points)),
            evidence,
        )
    return table


def _statements(diagnosis: Diagnosis) -> list[Text | Padding]:
    if not diagnosis.statements:
        return []
    lines: list[Text | Padding] = [Text("What follows from the numbers alone", style="bold")]
    for statement in diagnosis.statements:
        mark = "=" if statement.determined else "?"
        lines.append(Padding(Text(f"{mark} {statement.text}"), (0, 0, 0, 2)))
    return lines


def _notes(diagnosis: Diagnosis) -> list[Padding]:
    return [Padding(Text(f"Note: {note}", style="dim"), (0, 0, 0, 2)) for note in diagnosis.notes]
