"""`crossroads ablate`: which router inputs are worth what."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER, metavar="DATASET... OUT")
@click.option(
    "--recipe", "recipes", multiple=True, help="May be given again.  [default: default, r2r]"
)
@click.option(
    "--inputs", multiple=True, metavar="A+B",
    help="A set of inputs, instead of the usual ones: router inputs, token, distribution, scalars, "
    "history, recipe or everything, joined by +. May be given again.",
)  # fmt: skip
@click.option(
    "--objective", "objectives", multiple=True, type=click.Choice(["divergent", "mismatch"]),
    help="May be given again.  [default: both]",
)  # fmt: skip
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--folds", default=1, show_default=True, type=click.IntRange(1),
    help="Cross-validation: every problem is tested by routers that never saw it; 1 takes the "
    "datasets' own splits.",
)  # fmt: skip
@click.option("--epochs", default=None, type=click.IntRange(1), help="Of every fit.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE",
    help="Change a setting, of one recipe alone as RECIPE.KEY=VALUE.",
)  # fmt: skip
@click.option(
    "--cells", "only", multiple=True, metavar="TEXT",
    help="Only rows whose name (recipe, inputs, objective) contains this; may be given again.",
)  # fmt: skip
@click.option(
    "--threads", default=None, type=click.IntRange(1), help="CPU threads [default: cores]."
)
def ablate(
    folders: tuple[Path, ...],
    recipes: tuple[str, ...],
    inputs: tuple[str, ...],
    objectives: tuple[str, ...],
    seeds: int,
    folds: int,
    epochs: int | None,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    threads: int | None,
) -> None:
    """Train routers on DATASETs with each input alone, in pairs and together, and compare them.

    OUT keeps every fit: the same command goes on after a stop, and another one uses them too. It
    gets ablation.json, ablation.md and ablation.html.
    """
    if len(folders) < 2:
        raise click.UsageError("give at least one DATASET and the folder OUT")

    import torch

    from crossroads.cli.console import RichProgress, console
    from crossroads.cli.settings import parse_settings
    from crossroads.dataset import LabelledDataset
    from crossroads.training.ablate import AblationConfig
    from crossroads.training.ablate import ablate as measure
    from crossroads.training.config import OBJECTIVES
    from crossroads.training.grid_tables import ablation_tables, terminal

    *datasets, out = folders
    config = AblationConfig(
        recipes=recipes or ("default", "r2r"),
        objectives=objectives or OBJECTIVES,
        inputs=inputs,
        seeds=seeds,
        changes=parse_settings(sets) | ({"epochs": epochs} if epochs else {}),
        only=only,
        folds=folds,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    labelled = [LabelledDataset.open(path) for path in datasets]
    with RichProgress() as progress:
        result = measure(labelled, out, config, progress)
    for table in ablation_tables(result):
        console().print(terminal(table))
    console().print(f"ablation.json, ablation.md and ablation.html in {out}", soft_wrap=True)
