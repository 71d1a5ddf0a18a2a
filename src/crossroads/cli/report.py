"""`crossroads report`: draw an evaluation's tables, page and plots again, without the models."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
def report(run: Path) -> None:
    """Write RUN's page, plots and numbers from its stored traces, and print the tables."""
    from crossroads.cli.evaluate import show
    from crossroads.evaluation.folder import RunFolder

    show(RunFolder(run))
