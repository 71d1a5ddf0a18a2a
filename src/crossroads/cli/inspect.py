"""`crossroads inspect`: a labelled dataset, to look at."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FILE, FOLDER


@click.command()
@click.argument("dataset", type=FOLDER)
@click.option("--problem", default=None, help="Show the response to the problem of this id.")
@click.option(
    "--sample", default=0, show_default=True, type=click.IntRange(0),
    help="Which response to the problem.",
)  # fmt: skip
@click.option("--html", default=None, type=FILE, help="Write a page with responses in colour.")
@click.option(
    "--count", default=20, show_default=True, type=click.IntRange(1),
    help="How many responses the page has, from the first on.",
)  # fmt: skip
def inspect(dataset: Path, problem: str | None, sample: int, html: Path | None, count: int) -> None:
    """Show what DATASET is made of, and one response with its labels; loads no model."""
    from crossroads.cli.console import console
    from crossroads.labelling.inspect import DatasetView
    from crossroads.labelling.inspect_page import write_page
    from crossroads.labelling.inspect_text import response_parts, summary_parts

    view = DatasetView(dataset)
    chosen = None if problem is None else view.find(problem, sample)
    out = console()
    if chosen is None:
        out.print(*summary_parts(view.summary()), sep="\n")
    if html is not None:
        rows = view.rows[:count] if chosen is None else [chosen]
        write_page(html, view.summary(), view.responses(rows))
        out.print(f"{html}: {len(rows)} of {len(view.rows)} responses", markup=False)
        return
    [response] = view.responses([chosen or view.first_divergent()])
    colours = out.is_terminal and out.color_system is not None and not out.no_color
    out.print(*response_parts(response, colours=colours), sep="\n")
