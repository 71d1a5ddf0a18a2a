"""`crossroads train`: labelled datasets, or an R2R config, to a calibrated router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("folders", nargs=-1, type=FOLDER, metavar="DATASET... OUT")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path),
    help="An R2R training config (JSON); it names the data, so give OUT alone or nothing.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["default", "r2r"]), default=None,
    help="With --config: how epoch and threshold are chosen. default: three splits by problem, an "
    "exact threshold; r2r: as R2R does. The report has both.  [default: default]",
)  # fmt: skip
@click.option("--recipe", "recipe_name", default=None, help="default, distribution or r2r.")
@click.option(
    "--recipe-file", type=click.Path(path_type=Path),
    help="Training settings as JSON, such as the best.json of `crossroads search`.",
)  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@click.option("--inputs", default=None, help="Router inputs, comma-separated.")
@click.option("--objective", type=click.Choice(["divergent", "mismatch"]), default=None)
@click.option("--target-recall", type=float, default=None, help="[default: 0.95]")
@click.option(
    "--target", default=None,
    help="What the threshold is chosen for: recall=0.95, positive_rate=0.12, f1, "
    "cost=miss:10,call:1, guarantee=0.95.  [default: the recall]",
)  # fmt: skip
@click.option("--epochs", default=None, type=int, help="Passes over the train split.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N.  [default: cpu]")
@click.option(
    "--track", "trackers", multiple=True, help="tensorboard; history.jsonl is always there."
)
@click.option("--seed", default=None, type=int)
def train(
    folders: tuple[Path, ...],
    config_file: Path | None,
    protocol: str | None,
    recipe_name: str | None,
    recipe_file: Path | None,
    sets: tuple[str, ...],
    trackers: tuple[str, ...],
    target: str | None,
    **changes: Any,
) -> None:
    """Train a router on DATASETs into the folder OUT, choose its threshold, report on test.

    With --config, R2R's own JSON is read instead: `crossroads train --config
    default_training_config.json`.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if config_file is not None:
        own = {"--recipe": recipe_name, "--recipe-file": recipe_file, "--target": target, **given}
        _train_r2r(config_file, protocol or "default", folders, sets, own)
    else:
        if protocol is not None:
            raise click.UsageError("--protocol goes with --config; --recipe r2r is its network")
        _train(folders, recipe_name, recipe_file, sets, given, target, trackers)


def _train(
    folders: tuple[Path, ...],
    recipe_name: str | None,
    recipe_file: Path | None,
    sets: tuple[str, ...],
    changes: dict[str, Any],
    target: str | None,
    trackers: tuple[str, ...],
) -> None:
    from crossroads.cli.console import RichProgress, console
    from crossroads.cli.settings import parse_settings
    from crossroads.dataset import LabelledDataset
    from crossroads.training.recipes import read_recipe, recipe
    from crossroads.training.report_tables import (
        comparison_lines,
        quality_table,
        recalls_table,
        report_table,
    )
    from crossroads.training.target import Target
    from crossroads.training.train import train as train_router

    if len(folders) < 2:
        raise click.UsageError("give at least one DATASET and the folder OUT, or --config")
    if recipe_name is not None and recipe_file is not None:
        raise click.UsageError("--recipe and --recipe-file exclude each other")
    *datasets, out = folders
    if "inputs" in changes:
        changes["inputs"] = tuple(name.strip() for name in changes["inputs"].split(","))
    changes = {**parse_settings(sets), **changes}
    if recipe_file is not None:
        config = read_recipe(recipe_file, **changes)
    else:
        config = recipe(recipe_name or "default", **changes)
    wanted = Target.parse(target) if target is not None else None
    labelled = [LabelledDataset.open(path) for path in datasets]
    with RichProgress() as progress:
        trained = train_router(labelled, config, out, progress, target=wanted, trackers=trackers)
    report = trained.report
    screen = console()
    screen.print(
        report_table(report["rows"], config.objective, config.target_recall),
        recalls_table(report["rows"]),
        quality_table(report["quality"]),
    )
    for line in comparison_lines(report["comparisons"], config.target_recall):
        screen.print(line, soft_wrap=True)
    words = Target.parse(report["target"]).words
    screen.print(
        f"threshold {trained.threshold:.4f} for {words}; router and report.html in {out}",
        soft_wrap=True,
    )


def _train_r2r(
    config_file: Path,
    protocol: str,
    folders: tuple[Path, ...],
    sets: tuple[str, ...],
    own: dict[str, Any],
) -> None:
    from crossroads.cli.console import RichProgress, console, stderr
    from crossroads.training.r2r.config import R2RConfig
    from crossroads.training.r2r.run import train_r2r

    named = [name for name, value in own.items() if value is not None]
    if named:
        raise click.UsageError(
            f"{named[0].replace('_', '-')} does not go with --config; use --set, as in "
            "--set training.params.num_epochs=5"
        )
    if len(folders) > 1:
        raise click.UsageError("with --config the JSON names the data; give OUT alone or nothing")
    config = R2RConfig.read(config_file, sets)
    for note in config.notes:
        stderr().print(f"note: {note}", markup=False, soft_wrap=True)
    with RichProgress() as progress:
        done = train_r2r(config, folders[0] if folders else None, protocol, progress)
    console().print(*done.tables())
    console().print(f"router in {done.folder}, result in {done.result_path}", soft_wrap=True)
