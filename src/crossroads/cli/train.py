"""`crossroads train`: a labelled dataset to a calibrated router."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("dataset", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--inputs",
    default=None,
    help="Router inputs, comma-separated [default: those of the default recipe].",
)
@click.option(
    "--objective", type=click.Choice(["divergent", "mismatch"]), default="divergent",
    show_default=True,
)  # fmt: skip
@click.option("--target-recall", default=0.95, show_default=True)
@click.option("--epochs", default=None, type=int, help="Passes over the train split.")
@click.option("--seed", default=0, show_default=True)
def train(
    dataset: Path,
    out: Path,
    inputs: str | None,
    objective: str,
    target_recall: float,
    epochs: int | None,
    seed: int,
) -> None:
    """Train a router on DATASET into the folder OUT, choose its threshold, report on test."""
    from crossroads.cli.console import RichProgress, console
    from crossroads.dataset import LabelledDataset
    from crossroads.training.fit import FitConfig
    from crossroads.training.report import recalls_table, report_table
    from crossroads.training.train import train as train_router

    changes: dict[str, object] = {}
    if inputs is not None:
        changes["inputs"] = tuple(name.strip() for name in inputs.split(","))
    if epochs is not None:
        changes["epochs"] = epochs
    config = FitConfig(objective=objective, target_recall=target_recall, seed=seed, **changes)  # type: ignore[arg-type]
    labelled = LabelledDataset.open(dataset)
    with RichProgress() as progress:
        trained = train_router(labelled, config, out, progress)
    rows = trained.report["rows"]
    console().print(report_table(rows, objective, target_recall), recalls_table(rows))
    console().print(
        f"threshold {trained.threshold:.4f} for {100 * target_recall:.0f} % recall; router in {out}"
    )
