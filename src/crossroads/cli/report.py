"""`crossroads report`: draw an evaluation's tables, page and plots again, without the models."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--most-traces",
    type=click.IntRange(0),
    help="Answers that the page holds at most, those first on which systems differ [default: all].",
)
def report(run: Path, most_traces: int | None) -> None:
    """Write RUN's page, plots and numbers from its stored traces, and print the tables."""
    from crossroads.cli.evaluate import show
    from crossroads.evaluation.folder import RunFolder

    show(RunFolder(run), most_traces)
