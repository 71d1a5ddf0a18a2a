"""`crossroads audit`: does every label stand beside what it is about?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.errors import DataError

if TYPE_CHECKING:
    from crossroads.exchange.audit import AuditReport


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def audit(path: Path) -> None:
    """Check the labelled dataset or R2R data at PATH; exit code 2 if a check fails."""
    from crossroads.cli.console import RichProgress, console
    from crossroads.dataset import CARD, LabelledDataset
    from crossroads.exchange.audit import audit_dataset, audit_r2r

    with RichProgress() as progress:
        if (path / CARD).exists():
            report = audit_dataset(LabelledDataset.open(path), progress)
        else:
            report = audit_r2r(path, progress)
    console().print(_table(report))
    if not report.ok:
        raise DataError(report.summary)


def _table(report: AuditReport) -> object:
    from rich.table import Table

    table = Table(
        title=f"{report.source}: {report.sequences} sequences, {report.rows} rows, "
        f"{report.unjudged} without a verdict"
    )
    table.add_column("check")
    table.add_column("law")
    table.add_column("checked", justify="right")
    table.add_column("violations", justify="right")
    for check in report.checks:
        table.add_row(check.name, check.law, str(check.checked), str(check.violations))
    return table
