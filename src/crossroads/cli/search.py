"""`crossroads search`: better settings for a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER, metavar="DATASET... OUT")
@click.option("--recipe", "recipe_name", default="default", show_default=True)
@click.option(
    "--trials", default=50, show_default=True, type=click.IntRange(1),
    help="Finished trials in all; a larger number goes on with a finished search.",
)  # fmt: skip
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1),
    help="Fits per trial, whose mean counts.",
)  # fmt: skip
@click.option(
    "--timeout-minutes", type=click.FloatRange(0, min_open=True), default=None,
    help="Stop after that long; the same command goes on.",
)  # fmt: skip
@click.option(
    "--inputs", default=None, metavar="A+B",
    help="Search with this set of inputs, as `crossroads ablate` has it, instead of over several.",
)  # fmt: skip
@click.option("--objective", type=click.Choice(["divergent", "mismatch"]), default=None)
@click.option("--target-recall", type=float, default=None, help="[default: 0.95]")
@click.option("--epochs", default=None, type=click.IntRange(1), help="Of every fit.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE",
    help="Fix a setting, which then does not vary.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--threads", default=None, type=click.IntRange(1), help="CPU threads [default: cores]."
)
def search(
    folders: tuple[Path, ...],
    recipe_name: str,
    trials: int,
    seeds: int,
    timeout_minutes: float | None,
    inputs: str | None,
    objective: str | None,
    target_recall: float | None,
    epochs: int | None,
    sets: tuple[str, ...],
    seed: int,
    threads: int | None,
) -> None:
    """Try training settings on DATASETs: least positive_rate at the target recall on calibration.

    OUT gets search.json and best.json, which `crossroads train --recipe-file` reads. A search that
    was stopped goes on with the same command; test is not touched.
    """
    if len(folders) < 2:
        raise click.UsageError("give at least one DATASET and the folder OUT")

    import torch

    from crossroads.cli.console import RichProgress, console
    from crossroads.cli.settings import parse_settings
    from crossroads.dataset import LabelledDataset
    from crossroads.training.ablate import parse_inputs
    from crossroads.training.grid_tables import space_table, terminal, trials_table
    from crossroads.training.search import BEST, RESULT
    from crossroads.training.search import search as run_search
    from crossroads.training.search_space import SearchConfig

    *datasets, out = folders
    own = {
        "objective": objective,
        "target_recall": target_recall,
        "epochs": epochs,
        "inputs": None if inputs is None else parse_inputs(inputs, recipe_name),
    }
    config = SearchConfig(
        recipe=recipe_name,
        trials=trials,
        seeds=seeds,
        seed=seed,
        minutes=timeout_minutes,
        changes=parse_settings(sets) | {k: v for k, v in own.items() if v is not None},
    )
    if threads is not None:
        torch.set_num_threads(threads)
    labelled = [LabelledDataset.open(path) for path in datasets]
    with RichProgress() as progress:
        result = run_search(labelled, out, config, progress)
    console().print(terminal(space_table(result)), terminal(trials_table(result)))
    console().print(f"{RESULT} and {BEST} in {out}; to measure it on test:", soft_wrap=True)
    named = " ".join(map(str, datasets))
    console().print(
        f"  crossroads train {named} ROUTER --recipe-file {out / BEST}",
        soft_wrap=True,
        markup=False,
    )
