"""`crossroads agreement`: how far the judges of a labelling run agree."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FILE, FOLDER


@click.command()
@click.argument("dataset", type=FOLDER)
@click.option(
    "--sample", default=None, type=click.IntRange(1),
    help="Compare at most this many mismatches per pair [default: all].",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of the sample and the intervals.")
@click.option("--out", default=None, type=FILE, help="Write it all as Markdown, too.")
@click.option(
    "--examples", default=3, show_default=True, type=click.IntRange(0),
    help="Disagreements to show per pair.",
)  # fmt: skip
def agreement(
    dataset: Path, sample: int | None, seed: int, out: Path | None, examples: int
) -> None:
    """Compare the verdicts of the judges in DATASET pair by pair, and show where they differ."""
    from crossroads.artifacts import write_text
    from crossroads.cli.console import console
    from crossroads.labelling.agreement import agreement as measure
    from crossroads.labelling.agreement_text import (
        disagreement_text,
        judges_table,
        markdown,
        pairs_table,
    )

    report = measure(dataset, sample, seed, examples=examples)
    shown = console()
    shown.print(judges_table(report), pairs_table(report))
    for pair in report.pairs:
        for example in pair.disagreements:
            shown.print(disagreement_text(example), end="\n\n")
    if out is not None:
        write_text(out, markdown(report))
        shown.print(f"report in {out}", markup=False)
