"""`crossroads learning-curve`: what more labels are worth."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER, metavar="DATASET... OUT")
@click.option("--recipe", "recipes", multiple=True, help="May be given again.  [default: default]")
@click.option("--points", default=6, show_default=True, type=click.IntRange(2))
@click.option(
    "--inputs", default=None, metavar="A+B", help="A set of inputs, as `crossroads ablate` has it."
)
@click.option(
    "--objective", type=click.Choice(["divergent", "mismatch"]), default="divergent",
    show_default=True,
)  # fmt: skip
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--least-tokens", default=1000, show_default=True, type=click.IntRange(1),
    help="About how many tokens the smallest part has.",
)  # fmt: skip
@click.option(
    "--same-steps", is_flag=True,
    help="Give smaller parts more epochs, so that all take as many steps as the whole.",
)  # fmt: skip
@click.option("--epochs", default=None, type=click.IntRange(1), help="Of every fit.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE",
    help="Change a setting, of one recipe alone as RECIPE.KEY=VALUE.",
)  # fmt: skip
@click.option(
    "--threads", default=None, type=click.IntRange(1), help="CPU threads [default: cores]."
)
def learning_curve(
    folders: tuple[Path, ...],
    recipes: tuple[str, ...],
    points: int,
    inputs: str | None,
    objective: str,
    seeds: int,
    least_tokens: int,
    same_steps: bool,
    epochs: int | None,
    sets: tuple[str, ...],
    threads: int | None,
) -> None:
    """Train on growing parts of DATASETs, and say how many tokens it would take to win.

    OUT keeps every fit: the same command goes on after a stop. It gets learning-curve.json, .md
    and .html.
    """
    if len(folders) < 2:
        raise click.UsageError("give at least one DATASET and the folder OUT")

    import torch

    from crossroads.cli.console import RichProgress, console
    from crossroads.cli.settings import parse_settings
    from crossroads.dataset import LabelledDataset
    from crossroads.training.grid_tables import curve_tables, terminal
    from crossroads.training.learning_curve import CurveConfig
    from crossroads.training.learning_curve import learning_curve as measure

    *datasets, out = folders
    config = CurveConfig(
        recipes=recipes or ("default",),
        points=points,
        objective=objective,
        inputs=inputs,
        seeds=seeds,
        same_steps=same_steps,
        least_tokens=least_tokens,
        changes=parse_settings(sets) | ({"epochs": epochs} if epochs else {}),
    )
    if threads is not None:
        torch.set_num_threads(threads)
    labelled = [LabelledDataset.open(path) for path in datasets]
    with RichProgress() as progress:
        result = measure(labelled, out, config, progress)
    for table in curve_tables(result):
        console().print(terminal(table))
    console().print(
        f"learning-curve.json, learning-curve.md and learning-curve.html in {out}", soft_wrap=True
    )
